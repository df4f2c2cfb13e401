"""Functionals against numpy, scipy and scikit-free definitions on matrices of known spectra."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from stablerank.rewards.scorers.model_pass import Chunk
from stablerank.rewards.scorers.readings import View, grouped, pca95, rankme

MEASURES = ("stable_rank", "effective_rank", "participation_ratio", "pca95", "condition_number", "rankme")


def read(states_LD, center=False, measures=MEASURES):
    """The scores of one text all of whose tokens count."""
    mask = torch.ones(1, len(states_LD), dtype=torch.bool)
    chunk = Chunk({-1: torch.as_tensor(states_LD)[None]}, mask, mask, None)
    (reading,) = grouped({measure: (measure, View(center=center)) for measure in measures})
    return dict(zip(reading.names, reading(chunk)[0], strict=True))


@pytest.mark.parametrize("shape", [(5, 9), (40, 7), (6, 6)])
@pytest.mark.parametrize("center", [False, True])
def test_each_score_is_its_definition_on_numpys_spectrum(shape, center):
    states = np.random.default_rng(0).normal(size=shape) + 0.5
    kept = states - states.mean(0) if center else states
    values = np.linalg.svd(kept, compute_uv=False)
    if center and shape[0] <= shape[1]:
        values = values[:-1]
    share = values**2 / (values**2).sum()
    expected = {
        "stable_rank": np.linalg.norm(kept) ** 2 / np.linalg.norm(kept, 2) ** 2,
        "effective_rank": np.exp(entropy(values)),
        "participation_ratio": 1 / (share**2).sum(),
        "pca95": np.searchsorted(np.cumsum(share), 0.95) + 1,
        "condition_number": values[0] / values[-1],
        "rankme": np.exp(entropy(values)),
    }
    found = read(states, center)
    assert found.pop("rankme") == pytest.approx(expected.pop("rankme"), rel=1e-4)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_condition_number_is_numpys_where_nothing_is_centred():
    states = np.random.default_rng(1).normal(size=(8, 20))
    assert read(states)["condition_number"] == pytest.approx(np.linalg.cond(states), rel=1e-9)


def test_rankme_has_its_epsilon():
    values = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    p = np.array([1.0, 0.0, 0.0]) + 1e-7
    assert rankme(values).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert rankme(values).item() > 1


@pytest.mark.parametrize(
    ("variances", "expected"), [([1.0], 1), ([95, 5], 1), ([94, 6], 2), ([1] * 20, 19), ([0, 0], None)]
)
def test_pca95_counts_components_up_to_an_exact_share(variances, expected):
    found = pca95(torch.tensor(variances, dtype=torch.float64).sqrt()).item()
    assert np.isnan(found) if expected is None else found == expected


def test_one_token_is_one_and_none_or_a_centred_one_is_nothing():
    one = np.ones((1, 4))
    assert read(one, measures=MEASURES[:-1]) == pytest.approx(dict.fromkeys(MEASURES[:-1], 1.0))
    assert all(np.isnan(value) for value in read(one, center=True).values())
    assert all(np.isnan(value) for value in read(np.ones((3, 4)), center=True).values())
    assert all(np.isnan(value) for value in read(np.zeros((3, 4))).values())
    assert all(np.isnan(value) for value in read(np.full((3, 4), np.inf)).values())
    assert all(np.isnan(value) for value in read(np.ones((0, 4))).values())


def test_scores_of_one_view_share_a_spectrum():
    spectral = {f"{m}_{layer}": (m, View(layer=layer)) for layer in (-1, 2) for m in MEASURES}
    assert [(r.view.layer, len(r.names)) for r in grouped(spectral)] == [(-1, 6), (2, 6)]
