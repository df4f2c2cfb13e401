import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="session")
def bandit():
    """The enumerable world of benchmarks/credit_bias.py."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("credit_bias", BENCHMARKS / "credit_bias.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["credit_bias"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module
