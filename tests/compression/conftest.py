"""Adapters of several families, moved off their start, in folders that PEFT wrote."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from stablerank.adapters.config import SpectralLoraConfig

SETTINGS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_proj": 20, "0.mlp.up_proj": 3}},
    "sinelora": {"spectral": {"method": "sinelora", "omega": 30.0, "gain": None}},
}


def moved(model: PeftModel) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A tiny decoder on disk."""
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "head_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2))
    folder = tmp_path_factory.mktemp("bases") / "qwen3"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def load(base_folder):
    """A fresh copy of the base."""
    return lambda: Qwen3ForCausalLM.from_pretrained(base_folder).eval()


@pytest.fixture(scope="session")
def adapters(load, tmp_path_factory):
    """Model and folder by the name of the settings."""
    made = {}

    def adapter(name: str) -> tuple[PeftModel, Path]:
        if name not in made:
            config_class = SpectralLoraConfig if name == "sinelora" else LoraConfig
            config = config_class(r=8, lora_alpha=16, target_modules="all-linear", **SETTINGS[name])
            with torch.random.fork_rng():
                torch.manual_seed(4)
                model = moved(get_peft_model(load(), config))
            folder = tmp_path_factory.mktemp("adapters") / name
            model.save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return adapter
