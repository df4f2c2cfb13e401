"""A ``testbed`` cell: one of the exact small worlds, with the cell's seed.

``spec`` is the world's name, the overrides its settings (`stablerank.studies.settings`). Columns that another world
gives are None. Ranks and iterations come as base-two logarithms too: between arms whose size doubles, a difference of
those is an exponent. What left the finite numbers or the budget is None.

Left out on purpose: the worlds that load models; `benchmarks/` runs those.
"""

import math
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
    from stablerank.testbeds.two_layer_relu import World, last_decade, train

    history = train(World(**cast(settings.TwoLayerRelu, chosen).model_dump()), seed)
    halves = (history.st_plus, history.st_minus)
    return {
        "stable_rank": history.st_whole[-1],
        "stable_rank_half": max(half[-1] for half in halves),
        "half_rise": max(last_decade(history, half) for half in halves),
        "margin_ratio": strict(history.margin_ratio[-1]),
        "margin_rise": strict(last_decade(history, history.margin_ratio)),
        "log_loss": _logarithm(history.loss[-1]),
    }


def _low_rank_factorisation(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.low_rank_factorisation import Problem, iterations, lora, polar

    asked = cast(settings.LowRankFactorisation, chosen)
    descent, problem = {"lora": lora, "polar": polar}[asked.method], Problem(asked.condition, asked.rank)
    (reached,) = iterations(descent, problem, seed, asked.step, [asked.tolerance], asked.budget)
    return {} if reached is None else {"iterations": float(reached), "log2_iterations": math.log2(max(reached, 1))}


def _random_features(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.random_features import descend

    asked = cast(settings.RandomFeatures, chosen)
    path = descend(asked.activation, asked.width, seed, [asked.steps])
    return _ranks(path.stable_rank, path.nuclear_rank[-1])


def _spiked_features(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.random_features import bulk_features, descend_on, spiked_features, window

    asked = cast(settings.SpikedFeatures, chosen)
    begins, ends = window(asked.width)
    step = {"first": 0, "window_start": begins, "window_end": ends}[asked.at]
    drawn = (spiked_features if asked.spiked else bulk_features)(asked.width, seed)
    path = descend_on(drawn, seed, [step])
    return _ranks(path.stable_rank, path.nuclear_rank[-1])


def _sparse_regression(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.sparse_regression import train

    asked = cast(settings.SparseRegression, chosen)
    course = train(
        asked.rule,
        gated=asked.gated,
        multipliers=(asked.euclidean, asked.spectral),
        seed=seed,
        inputs=asked.inputs,
        samples=asked.samples,
        steps=asked.steps,
        record=set(),
    )
    return {"log_loss": _logarithm(course.train[-1]), "spectral_share": course.spectral_share}


def _initialisation(chosen: Any, seed: int) -> Numbers:
    from stablerank.testbeds.initialisation import chain

    asked = cast(settings.Initialisation, chosen)
    return _ranks(chain(asked.activation, asked.width, asked.layer, 4 * asked.width, seed)[-1])


def _ranks(stable: float, nuclear: float | None = None) -> Numbers:
    found: Numbers = {"stable_rank": stable, "log2_stable_rank": math.log2(stable)}
    return found if nuclear is None else {**found, "nuclear_rank": nuclear, "log2_nuclear_rank": math.log2(nuclear)}


def _logarithm(loss: float) -> float | None:
    """Natural; None of a loss that is not finite, or that underflowed."""
    return math.log(loss) if math.isfinite(loss) and loss > 0 else None


_WORLDS: Mapping[str, Callable[[Any, int], Numbers]] = {
    "two_layer_relu": _two_layer_relu,
    "low_rank_factorisation": _low_rank_factorisation,
    "random_features": _random_features,
    "spiked_features": _spiked_features,
    "sparse_regression": _sparse_regression,
    "initialisation": _initialisation,
}
