"""Names of units, their median, and what cells that score answers share."""

import hashlib
import random
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from stablerank.studies.settings import Scoring

if TYPE_CHECKING:
    from stablerank.rewards.scorers.answers import Scorer

Item = TypeVar("Item")


def unit_of(*texts: str) -> str:
    """A unit is what was asked: its place in a list would pair strangers where two arms ask different lists."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that exist."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def drawn(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most ``limit`` of them, which ones by the seed, in their own order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[at] for at in sorted(random.Random(seed).sample(range(len(items)), limit))]


def scorer_of(settings: Scoring, seed: int) -> "Scorer":
    """The one scorer of a cell; ``random`` draws by the cell's seed."""
    from stablerank.rewards.scorers.specs import build_scorers

    name = f"random:seed={seed}" if settings.scorer == "random" else settings.scorer
    shared = settings.model_dump(include={"dtype", "batch_tokens", "template", "window"})
    (scorer,) = build_scorers([name], settings.model, **shared)
    return scorer
