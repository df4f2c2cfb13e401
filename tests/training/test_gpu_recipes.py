"""What needs GPUs is checked as far as it goes without them: sections, TRL's configuration, accelerate's plugins."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from stablerank.cli.dry_run import print_plan
from stablerank.training.grpo import grpo_config
from stablerank.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def on_embedded_models(recipe: str) -> list[str]:
    """The recipe's settings on the embedded models, which have the architecture of its own, and on generated data."""
    assert "Qwen/Qwen3" in recipe
    mixture = yaml.safe_load(recipe)["reward"]
    mixture["components"][1]["reward"]["teacher"] = {"path": "zoo:arith-teacher"}
    return [
        "model.path=zoo:arith-student",
        "data={kind: arithmetic}",
        f"reward={yaml.safe_dump(mixture, default_flow_style=True, width=10**6).strip()}",
        "trainer.max_completion_length=96",
    ]


def test_vllm_settings_reach_trl(capsys) -> None:
    path = RECIPES / "gpu-qwen3-gsm8k.yaml"
    recipe = load_recipe(path)
    assert recipe.loss_settings["use_vllm"] and [c.reward.kind for c in recipe.components] == [
        "math_verify",
        "distillation",
    ]
    overrides = on_embedded_models(path.read_text())
    config = grpo_config(load_recipe(path, overrides), "nowhere")
    assert (config.use_vllm, config.vllm_mode, config.vllm_importance_sampling_mode) == (
        True,
        "colocate",
        "sequence_mask",
    )
    print_plan(str(path), overrides)
    printed = capsys.readouterr().out
    assert "vllm_gpu_memory_utilization: 0.3" in printed and "reward distillation" in printed


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_accelerate_reads_its_settings(name: str) -> None:
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
        return
    settings = {key.removeprefix("fsdp_"): value for key, value in config.fsdp_config.items()}
    settings["fsdp_version"] = settings.pop("version")
    settings |= {
        "auto_wrap_policy": settings["auto_wrap_policy"].lower(),
        "cpu_offload": settings.pop("offload_params"),
    }
    plugin = FullyShardedDataParallelPlugin(**settings)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True


@pytest.mark.parametrize("name", ["qwen2.5-1.5b", "ds-r1-1.5b"])
def test_published_settings_of_sr_grpo_reach_trl(name: str, tmp_path: Path, capsys) -> None:
    """128 completions a step of 4 processes, dropout, cosine with a tenth of warm-up, and either published beta."""
    path = RECIPES / f"gpu-sr-grpo-{name}.yaml"
    for at, file in enumerate(("train", "held_out")):
        rows = [{"prompt": f"{number}+1=?\n", "answer": str(number + 1)} for number in range(9 * at, 9 * at + 9)]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "model.path=zoo:arith-student",
        f"data.path={tmp_path / 'train.jsonl'}",
        f"data.test_path={tmp_path / 'held_out.jsonl'}",
        "data.chat=false",
        "trainer.max_completion_length=96",
    ]
    recipe = load_recipe(path, overrides)
    config = grpo_config(recipe, "nowhere")
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * 4 == 128
    assert (config.num_generations, config.beta, config.learning_rate) == (8, 0.01, 1e-6)
    assert config.warmup_steps * 10 == config.max_steps
    assert (recipe.adapter.r, recipe.adapter.alpha, recipe.adapter.dropout) == (16, 32, 0.1)
    assert recipe.components[0].effective_credit.epsilon == 1e-8
    assert grpo_config(load_recipe(path, [*overrides, "trainer.beta=0.04"]), "nowhere").beta == 0.04
    print_plan(str(path), overrides)
    assert "window: 512" in capsys.readouterr().out
