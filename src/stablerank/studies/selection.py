"""Some cells of a study, by id or by label.

Contract: ``--where rank=1,rank=16,regime=outcome`` selects the cells whose rank is 1 or 16 and whose regime is outcome:
one key with several values means any of them, several keys mean all. Keys are the axes of the plan's labels, ``arm``,
``seed`` and ``kind``. Cells keep the order in which they run.
"""

from collections.abc import Collection, Mapping, Sequence

from stablerank.errors import RecipeError
from stablerank.studies.plan import Cell, Plan

Where = Mapping[str, Collection[str]]


def parse_where(texts: Sequence[str]) -> dict[str, set[str]]:
    """``KEY=VALUE,KEY=VALUE`` as values by key.

    Raises:
        RecipeError: something else.
    """
    found: dict[str, set[str]] = {}
    for part in ",".join(texts).split(",") if texts else ():
        key, equals, value = part.strip().partition("=")
        if not key or not equals or not value:
            raise RecipeError(f"--where {part!r} is not KEY=VALUE; write it like `--where rank=16,seed=0`.")
        found.setdefault(key, set()).add(value)
    return found


def selected(plan: Plan, ids: Collection[str] = (), where: Where | None = None) -> list[Cell]:
    """The cells with one of ``ids`` and all of ``where``; everything where neither is given.

    Raises:
        RecipeError: an unknown id, key or value, or nothing selected.
    """
    cells = plan.cells()
    known = {cell.id for cell in cells}
    for one in ids:
        if one not in known:
            raise RecipeError(f"cell {one!r} is none of the plan's {len(known)}, such as {cells[0].id}; mend its name.")
    facts = {cell.id: _facts(plan, cell) for cell in cells}
    for key, values in (where or {}).items():
        _check(key, values, facts.values())
    found = [cell for cell in cells if (not ids or cell.id in ids) and _fits(facts[cell.id], where or {})]
    if not found:
        raise RecipeError("no cell of the plan has all that is asked for; ask for less (`stablerank study status`).")
    return found


def _facts(plan: Plan, cell: Cell) -> dict[str, str]:
    return {**plan.arms[cell.arm].labels, "arm": cell.arm, "seed": str(cell.seed), "kind": cell.kind}


def _fits(facts: Mapping[str, str], where: Where) -> bool:
    return all(facts.get(key) in values for key, values in where.items())


def _check(key: str, values: Collection[str], facts: Collection[Mapping[str, str]]) -> None:
    known = list(dict.fromkeys(each[key] for each in facts if key in each))
    if not known:
        keys = dict.fromkeys(name for each in facts for name in each)
        raise RecipeError(f"the plan's cells have no {key!r}; select by {', '.join(keys)}.")
    for value in values:
        if value not in known:
            raise RecipeError(f"no cell has {key}={value}; the plan has {', '.join(known)}.")
