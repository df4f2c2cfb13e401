from itertools import combinations
from math import comb

import numpy as np
import pytest

from stablerank.errors import DataError
from stablerank.evaluation.pass_at_k import pass_at_k


def test_equals_the_share_of_subsets_with_a_right_sample():
    samples = 7
    right_PN = np.tril(np.ones((samples + 1, samples)), -1)  # problem c has c right samples
    for k in range(1, samples + 1):
        share = [np.mean([any(row[list(chosen)]) for chosen in combinations(range(samples), k)]) for row in right_PN]
        np.testing.assert_allclose(pass_at_k(right_PN, k), share, atol=1e-14)


@pytest.mark.parametrize(("samples", "k"), [(200, 100), (1000, 1), (1000, 10), (1000, 999)])
def test_stays_exact_for_many_samples(samples, k):
    for right in (0, 1, 3, samples // 2, samples):
        exact = 1 - comb(samples - right, k) / comb(samples, k)
        assert pass_at_k([[True] * right + [False] * (samples - right)], k)[0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_samples_is_refused(k):
    with pytest.raises(DataError, match=rf"pass@{k} cannot be estimated from 3 samples .* 1\.\.3"):
        pass_at_k([[True, False, True]], k)
