from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RawRecipe = dict[str, Any]


def _small_recipe(output: Path, **changes: Any) -> RawRecipe:
    raw: RawRecipe = {
        "model": {"path": "zoo:arith-student"},
        "adapter": {"kind": "lora", "r": 4, "alpha": 8},
        "data": {"kind": "arithmetic", "level": "easy", "problems": 64},
        "reward": {"kind": "math_verify"},
        "optimiser": {"learning_rate": 1e-3},
        "trainer": {
            "max_steps": 4,
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 32,
            "beta": 0.01,
            "save_steps": 2,
        },
        "geometry": {"every": 2},
        "evaluation": {"split": "validation", "problems": 16, "every": 2, "curve_problems": 8},
        "output": str(output),
    }
    for section, value in changes.items():
        is_update = isinstance(value, dict) and "kind" not in value
        raw[section] = {**raw.get(section, {}), **value} if is_update else value
    return raw


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., RawRecipe]:
    """Four steps of GRPO on the embedded student: the demo, made as small as it can be and still be real.

    ``small_recipe(output, section={...})`` updates a section, or replaces it when the change names a ``kind``.
    """
    return _small_recipe
