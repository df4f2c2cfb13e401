"""Matrices known by what they do: a dense tensor, a product of two factors, a difference of two tensors.

Legend: O output features (rows), I input features (columns), R inner rank, C block width, N batch.

Contract: an operator never changes the tensors it holds and keeps their device. Products run in fp32 at least;
``materialised`` and the core are fp64, so that a difference of bf16 weights is taken after conversion, never before.
Needs a device with fp64 (CPU, CUDA). ``rows`` converts a piece of a stored matrix to fp32 (fp64 stays fp64): exactly
for bf16, fp16 and fp8, and with one rounding, relative to the difference itself, for a difference of two of them.

Source: the core is ``sigma(B A) = sigma(R_B R_A^T)`` from two thin QR factorisations (METHODS.md 10.1).

Left out on purpose: activations and sums of operators. A matrix on disk is read whole in its stored type and wrapped
in ``Dense``: its conversion, not its bytes, is what would double or quadruple memory, and that goes block by block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stablerank.spectral.precision import at_least_fp32


class Operator(Protocol):
    """An O-by-I matrix that can be multiplied and has a Frobenius norm, however it is stored."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)``."""

    def matmat(self, x_IC: Tensor) -> Tensor:
        """The matrix times a block, ``(I, C) -> (O, C)``."""

    def rmatmat(self, y_OC: Tensor) -> Tensor:
        """The transposed matrix times a block, ``(O, C) -> (I, C)``."""

    def frobenius_sq(self) -> float:
        """The squared Frobenius norm, accumulated in fp64."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A stored matrix ``(O, I)``."""

    matrix_OI: Tensor

    def __post_init__(self) -> None:
        _require_matrix("Dense", self.matrix_OI)

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)``."""
        return self.matrix_OI.shape[0], self.matrix_OI.shape[1]

    def matmat(self, x_IC: Tensor) -> Tensor:
        """``M X``."""
        return _product(self.matrix_OI, x_IC)

    def rmatmat(self, y_OC: Tensor) -> Tensor:
        """``M^T Y``."""
        return _product(self.matrix_OI.mT, y_OC)

    def frobenius_sq(self) -> float:
        """``sum M^2``, without an fp64 copy."""
        norms = (torch.linalg.vector_norm(block, dtype=torch.float64).item() for _, block in row_blocks(self))
        return sum(norm**2 for norm in norms)

    def rows(self, chosen: slice, buffer: Tensor | None = None) -> Tensor:
        """Some rows in fp32 at least, converted into ``buffer``; a view where nothing has to be converted."""
        rows = self.matrix_OI[chosen]
        if rows.dtype in (torch.float32, torch.float64):
            return rows
        return rows.float() if buffer is None else buffer[: len(rows)].copy_(rows)

    def exact_rows(self, chosen: slice) -> Tensor:
        """Some rows in fp64, without any rounding."""
        return self.matrix_OI[chosen].double()

    @property
    def entry_rounding(self) -> float:
        """How far ``rows`` may be off, relative to an entry."""
        return 0.0

    @property
    def mT(self) -> "Dense":
        """The transpose, a view."""
        return Dense(self.matrix_OI.mT)

    def materialised(self) -> Tensor:
        """The matrix in fp64."""
        return self.matrix_OI.double()


@dataclass(frozen=True, eq=False)
class Factored:
    """``scale * B A`` with ``B (O, R)`` and ``A (R, I)``; the product is never formed."""

    b_OR: Tensor
    a_RI: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        _require_matrix("Factored.b_OR", self.b_OR)
        _require_matrix("Factored.a_RI", self.a_RI)
        if self.b_OR.shape[1] != self.a_RI.shape[0]:
            raise ValueError(
                f"Factored needs B (O, R) and A (R, I) of one R, but B is {tuple(self.b_OR.shape)} and A is "
                f"{tuple(self.a_RI.shape)}: transpose or pair the factors again."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)``."""
        return self.b_OR.shape[0], self.a_RI.shape[1]

    def matmat(self, x_IC: Tensor) -> Tensor:
        """``s B (A X)``, cost O((O + I) R C)."""
        return self.scale * _product(self.b_OR, _product(self.a_RI, x_IC))

    def rmatmat(self, y_OC: Tensor) -> Tensor:
        """``s A^T (B^T Y)``, cost O((O + I) R C)."""
        return self.scale * _product(self.a_RI.mT, _product(self.b_OR.mT, y_OC))

    def frobenius_sq(self) -> float:
        """``sum core^2``: no cancellation, unlike the trace of two Gram matrices."""
        scale = torch.tensor(self.scale, dtype=torch.float64, device=self.b_OR.device)  # fp32 unless told
        return factored_core(self.b_OR, self.a_RI, scale).square().sum().item()


@dataclass(frozen=True, eq=False)
class Difference:
    """``after - before`` of two stored matrices ``(O, I)``, on the device of ``after``."""

    after_OI: Tensor
    before_OI: Tensor

    def __post_init__(self) -> None:
        _require_matrix("Difference.after_OI", self.after_OI)
        if self.after_OI.shape != self.before_OI.shape:
            raise ValueError(
                f"Difference needs two matrices of one shape, but after is {tuple(self.after_OI.shape)} and before is "
                f"{tuple(self.before_OI.shape)}: compare a parameter with its own snapshot."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)``."""
        return self.after_OI.shape[0], self.after_OI.shape[1]

    def matmat(self, x_IC: Tensor) -> Tensor:
        """``(W+ - W) X``: subtracted first, for the difference of two products cancels."""
        return _product(self.materialised(), x_IC)

    def rmatmat(self, y_OC: Tensor) -> Tensor:
        """``(W+ - W)^T Y``."""
        return _product(self.materialised().mT, y_OC)

    def frobenius_sq(self) -> float:
        """``sum (W+ - W)^2``."""
        return self.materialised().square().sum().item()

    def rows(self, chosen: slice, buffer: Tensor | None = None) -> Tensor:
        """Some rows in fp32 at least, subtracted after conversion, in ``buffer`` where one is given."""
        after = at_least_fp32(self.after_OI[chosen])
        before = at_least_fp32(self.before_OI[chosen].to(after.device))
        return torch.sub(after, before, out=None if buffer is None else buffer[: len(after)])

    def exact_rows(self, chosen: slice) -> Tensor:
        """Some rows in fp64; only entries that differ by more than 2^53 in size are rounded."""
        after = self.after_OI[chosen]
        return after.double() - self.before_OI[chosen].to(after.device).double()

    @property
    def entry_rounding(self) -> float:
        """How far ``rows`` may be off, relative to an entry: the one rounding of the subtraction."""
        widest = torch.promote_types(self.after_OI.dtype, self.before_OI.dtype)
        return torch.finfo(torch.promote_types(widest, torch.float32)).eps / 2

    @property
    def mT(self) -> "Difference":
        """The transpose, a view."""
        return Difference(self.after_OI.mT, self.before_OI.mT)

    def materialised(self) -> Tensor:
        """The difference in fp64."""
        return self.exact_rows(slice(None))


Stored = Dense | Difference
"""Operators whose entries lie in memory and can be read in blocks of rows."""

BLOCK_ENTRIES = 2**19
"""Entries of a converted block: 2 MiB in fp32, small enough for a second product to find it in the cache."""


def row_slices(operator: Stored) -> Iterator[slice]:
    """Where the blocks of one pass lie: whole rows, about ``BLOCK_ENTRIES`` entries each."""
    rows, step = operator.shape[0], _block_rows(operator)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_blocks(operator: Stored) -> Iterator[tuple[slice, Tensor]]:
    """One pass over the matrix: blocks of rows in fp32 at least, and where they lie.

    The next block overwrites the last one: a fresh one each time would cost more in page faults than its conversion.
    """
    like = operator.rows(slice(0, 1))
    buffer = like.new_empty(min(_block_rows(operator), operator.shape[0]), operator.shape[1])
    for chosen in row_slices(operator):
        yield chosen, operator.rows(chosen, buffer)


def _block_rows(operator: Stored) -> int:
    return max(16, BLOCK_ENTRIES // max(operator.shape[1], 1))


def factored_core(b_NOR: Tensor, a_NRI: Tensor, scale_N: Tensor) -> Tensor:
    """``s R_B R_A^T`` in fp64, at most R by R: the singular values of ``s B A`` and nothing else of it.

    Leading dimensions are a batch, or absent. Cost O((O + I) R^2) a product.
    """
    r_b = torch.linalg.qr(b_NOR.double(), mode="r").R
    r_a = torch.linalg.qr(a_NRI.mT.double(), mode="r").R
    return scale_N.double()[..., None, None] * (r_b @ r_a.mT)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in the wider of the two dtypes, fp32 at least."""
    left, right = at_least_fp32(left), at_least_fp32(right)
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype) @ right.to(dtype)


def _require_matrix(place: str, tensor: Tensor) -> None:
    if tensor.ndim != 2:
        raise ValueError(f"{place} needs a 2-D tensor, but the shape is {tuple(tensor.shape)}: reshape it to (O, I).")
