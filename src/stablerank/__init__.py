"""Measure, steer and test the spectral geometry of LLM post-training.

Importing this package loads nothing heavy; each public name loads its room when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# TRL and huggingface_hub read this when they are imported, which is after us: nothing about a run leaves the machine.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from stablerank.adapters.prepare import prepare_adapter
    from stablerank.choosing import best_of_n
    from stablerank.compressing import rate_distortion
    from stablerank.compression.compress import compress, load_compressed
    from stablerank.diagnosing import diagnose_run
    from stablerank.evaluating import evaluate, headroom
    from stablerank.facade import export, train
    from stablerank.measuring import measure
    from stablerank.rewardbenching import rewardbench
    from stablerank.rewards.plain_trl import as_trl_reward
    from stablerank.rewards.scorers.trl import StableRankReward
    from stablerank.scoring import score
    from stablerank.spectral.functionals import stable_rank
    from stablerank.training.alarms import watch_collapse
    from stablerank.training.overfitting import watch_overfitting
    from stablerank.training.recipe import Recipe, load_recipe
    from stablerank.training.telemetry import GeometryCallback, watch_geometry
    from stablerank.training.zero import explain_zero

__version__ = "0.1.0"

_HOMES = {
    "GeometryCallback": "stablerank.training.telemetry",
    "Recipe": "stablerank.training.recipe",
    "StableRankReward": "stablerank.rewards.scorers.trl",
    "as_trl_reward": "stablerank.rewards.plain_trl",
    "best_of_n": "stablerank.choosing",
    "compress": "stablerank.compression.compress",
    "diagnose_run": "stablerank.diagnosing",
    "evaluate": "stablerank.evaluating",
    "explain_zero": "stablerank.training.zero",
    "export": "stablerank.facade",
    "headroom": "stablerank.evaluating",
    "inspect_reward": "stablerank.inspecting",
    "load_compressed": "stablerank.compression.compress",
    "load_recipe": "stablerank.training.recipe",
    "measure": "stablerank.measuring",
    "prepare_adapter": "stablerank.adapters.prepare",
    "rate_distortion": "stablerank.compressing",
    "rewardbench": "stablerank.rewardbenching",
    "score": "stablerank.scoring",
    "stable_rank": "stablerank.spectral.functionals",
    "train": "stablerank.facade",
    "watch_collapse": "stablerank.training.alarms",
    "watch_geometry": "stablerank.training.telemetry",
    "watch_overfitting": "stablerank.training.overfitting",
}

__all__ = [
    "GeometryCallback",
    "Recipe",
    "StableRankReward",
    "as_trl_reward",
    "best_of_n",
    "compress",
    "diagnose_run",
    "evaluate",
    "explain_zero",
    "export",
    "headroom",
    "inspect_reward",
    "load_compressed",
    "load_recipe",
    "measure",
    "prepare_adapter",
    "rate_distortion",
    "rewardbench",
    "score",
    "stable_rank",
    "train",
    "watch_collapse",
    "watch_geometry",
    "watch_overfitting",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stablerank' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
