import numpy as np
import pytest


@pytest.fixture
def biased():
    """Pairs whose chosen response is shorter three times in four: lengths, groups, and a generator for scores."""
    rng = np.random.default_rng(5)
    pairs = 3_000
    gap_P = np.abs(rng.normal(scale=0.8, size=pairs)) * np.where(rng.random(pairs) < 0.75, -1, 1)
    rejected_P = np.exp(rng.normal(5, 0.4, size=pairs))
    return np.round(rejected_P * np.exp(gap_P)) + 1, np.round(rejected_P) + 1, [str(n // 2) for n in range(pairs)], rng
