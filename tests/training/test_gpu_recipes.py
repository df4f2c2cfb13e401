"""What needs GPUs is checked as far as it goes without them: sections, TRL's configuration, accelerate's plugins."""

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
