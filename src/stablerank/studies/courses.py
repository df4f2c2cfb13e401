"""Columns of a study that come from the course of a run with a held-out loss.

``MEASURE_at_MOMENT`` is the stable rank of updates or effects at a moment that runs of different objectives share:
``half``, ``tenth`` (of the training loss before training), ``norm_N`` (size of the whole update), ``best`` (lowest
held-out loss) and ``end``. ``MEASURE_trend_before`` and ``_after`` are Kendall's tau with the step up to and from the
best moment. A column has one value a matrix (a layer, for effects) as units, and their mean as the cell's value; it is
None where the run has no such moment. See dynamics/overfitting.py.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean

from stablerank.dynamics.overfitting import Course, Ranks, ranks_at

Numbers = dict[str, float | None]

SHARES = {"half": 0.5, "tenth": 0.1}
NORMS = (0.5, 1, 2, 4, 8)
MOMENTS = (*SHARES, *(f"norm_{size:g}" for size in NORMS), "best", "end")
MEASURES = ("update_rank", "effect_rank")
SPANS = ("before", "after")
PLAIN = ("overfits", "best_step", "held_out_rise")
UNIT_COLUMNS = frozenset(
    {f"{measure}_at_{moment}" for measure in MEASURES for moment in MOMENTS}
    | {f"{measure}_trend_{span}" for measure in MEASURES for span in SPANS}
)
COLUMNS = UNIT_COLUMNS | frozenset(PLAIN)


def columns_of(course: Course) -> tuple[Numbers, dict[str, Numbers]]:
    """Values and units of every column."""
    units = dict(_unit_columns(course))
    return {**_plain(course), **{name: _mean(found) for name, found in units.items()}}, units


def _plain(course: Course) -> Numbers:
    best = course.best
    if best is None:
        return dict.fromkeys(PLAIN)
    rise = course.moments[-1].held_out - best.held_out
    return {"overfits": float(bool(course.overfits)), "best_step": float(best.step), "held_out_rise": rise}


def _unit_columns(course: Course) -> Iterator[tuple[str, Numbers]]:
    steps = _steps(course)
    for measure, ranks in zip(MEASURES, (course.updates, course.effects), strict=True):
        for moment in MOMENTS:
            yield f"{measure}_at_{moment}", dict(ranks_at(ranks, steps[moment]))
        yield from _trends(course, measure, ranks)


def _steps(course: Course) -> dict[str, int | None]:
    best = course.best
    return {
        **{name: course.at_loss(share) for name, share in SHARES.items()},
        **{f"norm_{size:g}": course.at_norm(size) for size in NORMS},
        "best": best.step if best else None,
        "end": course.moments[-1].step if course.moments else None,
    }


def _trends(course: Course, measure: str, ranks: Mapping[int, Ranks]) -> Iterator[tuple[str, Numbers]]:
    best = course.best
    yield f"{measure}_trend_before", course.trend(ranks, last=best.step) if best else {}
    yield f"{measure}_trend_after", course.trend(ranks, first=best.step) if best else {}


def _mean(units: Numbers) -> float | None:
    values = [value for value in units.values() if value is not None]
    return fmean(values) if values else None
