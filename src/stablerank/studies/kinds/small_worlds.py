"""A ``testbed`` cell: one of the exact small worlds, with the cell's seed.

``spec`` is the world's name, the overrides its settings (`stablerank.studies.settings`). Columns that another world
gives are None.

Left out on purpose: the worlds that load models or sweep widths; `benchmarks/` runs those.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from stablerank.runs.strict_json import strict
from stablerank.studies import settings
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import COLUMNS
from stablerank.studies.task import Found, Numbers, Task


def run_testbed(task: Task, study: StudyFolder) -> Found:
    """The numbers of one world at its end."""
    chosen = settings.settings_of(task.kind, task.spec, task.overrides)
    return Found({**dict.fromkeys(sorted(COLUMNS["testbed"])), **_WORLDS[task.spec](chosen, task.seed)})


def _two_layer_relu(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.two_layer_relu import World, train

    history = train(World(**cast(settings.TwoLayerRelu, chosen).model_dump()), seed)
    return {
        "stable_rank": history.st_whole[-1],
        "stable_rank_plus": history.st_plus[-1],
        "stable_rank_minus": history.st_minus[-1],
        "margin_ratio": strict(history.margin_ratio[-1]),
        "loss": history.loss[-1],
    }


def _low_rank_factorisation(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.low_rank_factorisation import Problem, iterations, lora, polar

    asked = cast(settings.LowRankFactorisation, chosen)
    descent, problem = {"lora": lora, "polar": polar}[asked.method], Problem(asked.condition, asked.rank)
    (reached,) = iterations(descent, problem, seed, asked.step, [asked.tolerance], asked.budget)
    return {"iterations": None if reached is None else float(reached)}


def _random_features(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.random_features import descend

    asked = cast(settings.RandomFeatures, chosen)
    path = descend(asked.activation, asked.width, seed, [asked.steps])
    return {"stable_rank": path.stable_rank, "nuclear_rank": path.nuclear_rank[-1]}


_WORLDS: Mapping[str, Callable[[Any, int], Numbers]] = {
    "two_layer_relu": _two_layer_relu,
    "low_rank_factorisation": _low_rank_factorisation,
    "random_features": _random_features,
}
