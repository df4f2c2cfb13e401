"""Cells that read no recipe, each run here against the library's own functions or an independent computation."""

import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stablerank.compression.compress import compress
from stablerank.compression.spec import CompressionSpec
from stablerank.errors import RecipeError
from stablerank.evaluation.bestofn.recorded import recorded_pool
from stablerank.studies.cells import run_cell
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import lock
from stablerank.studies.settings import settings_of
from stablerank.testbeds.initialisation import layers
from stablerank.testbeds.random_features import spiked_features
from stablerank.testbeds.two_layer_relu import World, train
from stablerank.zoo.resolve import resolve

PAIRS = [
    {"prompt": f"{n}+1=", "chosen": "x" * (3 + n), "rejected": "y" * 5, "subset": "all", "id": str(n)} for n in range(6)
]
POOL = [
    {"prompt": "1+1=", "responses": ["2", "33", "444"], "correct": [True, False, False]},
    {"prompt": "2+2=", "responses": ["44", "5", "666"], "correct": [True, False, True]},
]


def ran(study, kind, spec, *overrides, seed=3):
    cell = {"cell": f"arm--{seed}", "arm": "arm", "seed": seed, "kind": kind, "spec": spec}
    place = StudyFolder(study).cell_path(cell["cell"])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({**cell, "overrides": list(overrides), "study_sha256": "0" * 64, "exploratory": False}))
    result = run_cell(place)
    assert result["status"] == "done", result["error"]
    return result


def written(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_score_cell_counts_pairs_in_order(tmp_path):
    written(tmp_path, "pairs.jsonl", PAIRS)
    found = ran(tmp_path, "score", "pairs.jsonl", "scorer=longer")
    # Chosen responses of 3 to 8 characters beside 5: two shorter, one equal, three longer.
    assert found["values"]["accuracy"] == pytest.approx(3.5 / 6) and found["values"]["tie_rate"] == pytest.approx(1 / 6)
    assert sorted(found["units"]["accuracy"].values()) == [0, 0, 0.5, 1, 1, 1]
    assert found["values"]["unscored"] == 0
    harsh = ran(tmp_path, "score", "pairs.jsonl", "scorer=longer", "ties=lose")
    assert harsh["values"]["accuracy"] == pytest.approx(3 / 6)


def test_a_model_scores_and_the_seed_draws_the_pairs(tmp_path):
    written(tmp_path, "pairs.jsonl", PAIRS)
    setting = ("scorer=stable_rank", "model=zoo:arith-student", "template=bare")
    whole = ran(tmp_path, "score", "pairs.jsonl", *setting)["units"]["accuracy"]
    parts = [ran(tmp_path, "score", "pairs.jsonl", *setting, "limit=3", seed=seed) for seed in range(4)]
    drawn = [part["units"]["accuracy"] for part in parts]
    assert all(len(part) == 3 and part.items() <= whole.items() for part in drawn)
    assert len({frozenset(part) for part in drawn}) > 1


def test_a_bestofn_cell_is_the_mean_over_all_subsets(tmp_path):
    written(tmp_path, "pool.jsonl", POOL)
    found = ran(tmp_path, "bestofn", "pool.jsonl", "scorer=shorter", "n=2")
    # Of the three pairs of answers the shorter one is right twice, and once in the second problem.
    right = [[("2", "33"), ("2", "444"), ("33", "444")], [("44", "5"), ("44", "666"), ("5", "666")]]
    rights = [{"2"}, {"44", "666"}]
    by_hand = [np.mean([min(two, key=len) in good for two in pairs]) for pairs, good in zip(right, rights, strict=True)]
    assert sorted(found["units"]["pick"].values()) == pytest.approx(sorted(by_hand))
    assert found["values"]["pick"] == found["values"]["shortest"] == pytest.approx(np.mean(by_hand))
    assert found["values"]["random"] == pytest.approx(0.5)
    assert found["values"]["over_random"] == pytest.approx(np.mean(by_hand) - 0.5)
    assert found["values"]["oracle"] == pytest.approx((2 / 3 + 1) / 2)
    assert len(recorded_pool(str(tmp_path / "pool.jsonl")).problems) == len(found["units"]["pick"])


def test_a_compress_cell_weighs_its_file(tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    found = ran(tmp_path, "compress", "adapter", "bits=3")
    again = compress(tmp_path / "adapter", tmp_path / "again.safetensors", CompressionSpec(bits=3))
    file = StudyFolder(tmp_path).run_path("arm--3") / "adapter.safetensors"
    assert file.read_bytes() == again.file.read_bytes() and found["values"]["bytes"] == file.stat().st_size
    errors = {loss.module: loss.error for loss in again.losses}
    assert found["units"]["update_error"] == pytest.approx(errors)
    assert found["values"]["update_error"] == pytest.approx(np.median(list(errors.values())))
    assert ran(tmp_path, "compress", "adapter", "bits=3")["values"] == found["values"], "a second start replaces it"


def test_a_testbed_cell_is_the_small_world_with_the_cells_seed(tmp_path):
    small = {"neurons": 6, "points": 4, "features": 40, "steps": 50}
    overrides = [f"{key}={value}" for key, value in small.items()]
    found = ran(tmp_path, "testbed", "two_layer_relu", *overrides, seed=7)["values"]
    history = train(World(**small), 7)
    assert found["stable_rank"] == history.st_whole[-1] and found["log_loss"] == math.log(history.loss[-1])
    assert found["stable_rank_half"] == max(history.st_plus[-1], history.st_minus[-1])
    assert found["iterations"] is None
    factorised = ran(tmp_path, "testbed", "low_rank_factorisation", "method=polar", "condition=2", "step=0.5")
    assert factorised["values"]["iterations"] > 0
    features = ran(tmp_path, "testbed", "random_features", "width=16", "steps=4")["values"]
    assert 1 <= features["stable_rank"] <= 16 and math.isfinite(features["nuclear_rank"])


def test_testbed_cells_of_features_are_their_spectra(tmp_path):
    spiked = ran(tmp_path, "testbed", "spiked_features", "width=32", "at=first", seed=5)["values"]
    drawn_KN = spiked_features(32, 5).numpy()
    values = np.linalg.svd(drawn_KN, compute_uv=False) ** 2
    assert spiked["stable_rank"] == pytest.approx(values.sum() / values[0])
    assert 2 ** spiked["log2_nuclear_rank"] == pytest.approx(spiked["nuclear_rank"])
    bulk = ran(tmp_path, "testbed", "spiked_features", "width=32", "spiked=false", seed=5)["values"]
    assert bulk["stable_rank"] > 4 * spiked["stable_rank"]
    first = ran(tmp_path, "testbed", "initialisation", "width=32", "activation=tanh", seed=5)["values"]
    second = ran(tmp_path, "testbed", "initialisation", "width=32", "activation=tanh", "layer=2", seed=5)["values"]
    expected = [np.linalg.svd(layer.numpy(), compute_uv=False) for layer in layers("tanh", 32, 2, 128, 5)]
    ranks = [float((of**2).sum() / of[0] ** 2) for of in expected]
    assert [first["stable_rank"], second["stable_rank"]] == pytest.approx(ranks)


def test_a_testbed_cell_that_explodes_has_no_loss(tmp_path):
    size = ("inputs=4", "samples=16", "steps=30")
    calm = ran(tmp_path, "testbed", "sparse_regression", "rule=middle", *size)["values"]
    assert math.isfinite(calm["log_loss"]) and calm["spectral_share"] == 0.5
    wild = ran(tmp_path, "testbed", "sparse_regression", "rule=euclidean", "euclidean=1e6", *size)["values"]
    assert wild["log_loss"] is None


@pytest.mark.parametrize(
    ("kind", "spec", "overrides", "said"),
    [
        ("score", "pairs.jsonl", [], "needs scorer=VALUE"),
        ("score", "pairs.jsonl", ["scorer=longer", "depth=3"], "no setting 'depth'"),
        ("bestofn", "pool.jsonl", ["scorer=longer", "n=1"], "n=1 of a bestofn arm is refused"),
        ("testbed", "two_layers", [], "testbed 'two_layers' is not known; choose one of two_layer_relu"),
        ("testbed", "two_layer_relu", ["slope=steep"], "slope='steep'"),
        ("compress", "adapter", ["method=zip"], "method='zip'"),
    ],
)
def test_what_an_arm_cannot_set_is_one_sentence(kind, spec, overrides, said):
    with pytest.raises(RecipeError, match=said):
        settings_of(kind, spec, overrides)


def test_a_lock_holds_pairs_and_model_and_no_testbed(tmp_path):
    written(tmp_path, "pairs.jsonl", PAIRS)
    (tmp_path / "plan.yaml").write_text(
        """
question: Does it?
mode: exploratory
hardening: null
seeds: [1, 2]
arms:
  longer: {kind: score, spec: pairs.jsonl, overrides: [scorer=stable_rank, "model=zoo:arith-student"]}
  world: {kind: testbed, spec: random_features}
hypotheses:
  h: {claim: It does., rule: {kind: difference, column: accuracy, arm: longer, margin: 0.5, direction: greater}}
"""
    )
    lock(tmp_path)
    files = json.loads((tmp_path / "plan.lock").read_text())["content"]["files"]
    assert "study:pairs.jsonl" in files and "zoo:arith-student/model.safetensors" in files
    assert not any("random_features" in name for name in files)
