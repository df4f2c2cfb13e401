"""The GPU recipes of Pythia, trained for two steps on a tiny random model of its architecture."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, set_seed

from stablerank.cli.dry_run import print_plan
from stablerank.facade import train
from stablerank.tasks.arithmetic import problems, slipped
from stablerank.training.recipe import load_recipe
from stablerank.zoo.resolve import resolve

RECIPES = Path(__file__).parents[2] / "recipes"
MODULES = ("attention.dense", "attention.query_key_value", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put a tiny GPT-NeoX and pairs of arithmetic in the place of Pythia and hh-rlhf."""
    folder = tmp_path_factory.mktemp("pythia")
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    set_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": p.prompt, "chosen": p.solution, "rejected": slipped(p)} for p in problems("train", 60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"model.path={folder / 'model'}",
        f"data.path={folder / 'pairs.jsonl'}",
        "trainer.max_steps=4",
        "trainer.save_steps=4",
        "geometry.every=2",
        "evaluation.every=2",
        "evaluation.curve_examples=4",
    ]


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_the_published_settings_are_there(objective: str) -> None:
    recipe = load_recipe(RECIPES / f"gpu-pythia-{objective}.yaml")
    assert (recipe.adapter.r, recipe.adapter.alpha, recipe.adapter.dropout) == (128, 256, 0.05)
    assert (recipe.optimiser.learning_rate, recipe.optimiser.schedule, recipe.optimiser.warmup_steps) == (
        5e-6,
        "cosine",
        50,
    )
    assert (recipe.max_steps, recipe.loss_settings["max_length"], recipe.data.limit) == (800, 512, 2000)
    assert recipe.objective == "clm" or recipe.loss_settings["beta"] == 0.1


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_it_trains_the_four_modules_of_every_block(small: list[str], objective: str, tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / f"gpu-pythia-{objective}.yaml", [*small, "adapter.r=8", f"output={tmp_path / 'run'}"]
    )
    folder = train(recipe.resolved())
    updates = {
        (row["layer"], row["module"])
        for row in folder.geometry.rows()
        if (row["kind"], row["metric"], row["step"]) == ("update", "stable_rank", 4) and row["value"] >= 1
    }
    assert updates == {(layer, module) for layer in (0, 1) for module in MODULES}
    effects = [r for r in folder.geometry.rows() if (r["kind"], r["metric"]) == ("effect", "stable_rank")]
    assert len(effects) == 4 and all(row["value"] >= 1 for row in effects)


@pytest.mark.parametrize("objective", ["clm", "dpo"])
def test_the_dry_run_prices_it(small: list[str], objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(str(RECIPES / f"gpu-pythia-{objective}.yaml"), [*small, "adapter.r=8"])
    printed = capsys.readouterr().out
    shapes = [(32, 96), (32, 32), (32, 64), (64, 32)]
    assert f"objective: {objective}" in printed
    assert f"trainable parameters  {2 * 8 * sum(map(sum, shapes)):,} " in printed, "factors of every block's matrices"


def test_bitfit_trains_the_biases_that_gpt_neox_has(small: list[str], tmp_path: Path) -> None:
    changes = ["adapter={kind: bitfit}", "model.dtype=float32", "geometry.every=0", f"output={tmp_path / 'run'}"]
    folder = train(load_recipe(RECIPES / "gpu-pythia-dpo.yaml", [*small, *changes]).resolved())
    before = load_file(Path(small[0].partition("=")[2]) / "model.safetensors")
    after = load_file(folder.model_path / "model.safetensors")
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert changed and all(name.endswith(".bias") for name in changed)
