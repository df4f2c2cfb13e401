"""How to compress: the method, its bits and groups, and what is cut off before.

Contract: an instance is consistent: the method has these bits, at most one rule of truncation is set.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from stablerank.compression.quantisers.methods import QUANTISERS
from stablerank.errors import RecipeError

Method = Literal["kmeans", "affine", "symmetric", "nf4", "fp16"]
Group = Literal["tensor", "row"] | int
FULL: Literal["fp16"] = "fp16"
"""The method that only rounds to fp16: full precision for a comparison, and what is not a factor."""
FULL_BITS = 16


def known_method(name: str) -> Method:
    """The method of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in get_args(Method):
        raise RecipeError(f"Method {name!r} is none of {', '.join(get_args(Method))}; choose one of them.")
    return name  # type: ignore[return-value]


@dataclass(frozen=True)
class CompressionSpec:
    """A method with its settings.

    Raises:
        RecipeError: settings that exclude one another, or a value outside its range.
    """

    method: Method = "kmeans"
    bits: int | None = None
    """Bits a value; None is the method's own (4 for nf4, 16 for fp16) or 5, as published for SineLoRA-delta."""
    group: Group = "tensor"
    """Values that share a codebook or a scale: a tensor, a row (an output channel), or so many in a row."""
    rank: int | None = None
    """Keep so many singular directions of each update."""
    energy: float | None = None
    """Keep the fewest directions with this share of the squared singular values."""
    entropy: bool = True
    """Write codes by zstd where that is shorter."""
    sine: bool = False
    """Put the sine on a LoRA that gives its update back best (frequency.py)."""

    def __post_init__(self) -> None:
        """Fill in the bits, then check."""
        known_method(self.method)
        known = (FULL_BITS,) if self.method == FULL else QUANTISERS[self.method].bits
        if self.bits is None:
            object.__setattr__(self, "bits", 5 if 5 in known else known[-1])
        if self.bits not in known:
            has = f"{known[0]} to {known[-1]} bits" if len(known) > 1 else f"{known[0]} bits"
            raise RecipeError(f"{self.method} has {has}, not {self.bits}; change `--bits`, or take kmeans.")
        if isinstance(self.group, str) and self.group not in ("tensor", "row"):
            raise RecipeError(f"Group {self.group!r} is neither `tensor`, `row` nor a number of values such as 64.")
        if isinstance(self.group, int) and self.group < 2:
            raise RecipeError(f"A group of {self.group} values would cost more than the values; give 16 or more.")
        self._check_truncation()

    def _check_truncation(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise RecipeError("Rank and energy are two rules for one cut; drop one of them.")
        if self.rank is not None and self.rank < 1:
            raise RecipeError(f"Rank {self.rank} keeps nothing; give 1 or more.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RecipeError(f"Energy {self.energy} is no share; give a number above 0 and at most 1, such as 0.95.")

    @property
    def truncates(self) -> bool:
        """Whether factors are written anew at a lower rank."""
        return self.rank is not None or self.energy is not None
