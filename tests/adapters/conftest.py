"""Tiny real architectures on disk, for adapters to be put on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stablerank.zoo.resolve import resolve

VOCABULARY = 48
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_DECODER, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_DECODER, num_key_value_heads=2, head_dim=8)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_DECODER, hidden_dropout=0.0, attention_dropout=0.0)),
}


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of an architecture: ``llama``, ``qwen3`` or ``gpt_neox``; biases are not zero.

    ``zoo:NAME`` is the folder of that model.
    """
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture.startswith("zoo:"):
            return Path(resolve(architecture))
        if architecture not in made:
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = _BUILD[architecture]()
                for name, value in model.named_parameters():
                    # The usual 0.02 leaves a model this small nearly linear.
                    value.data.normal_(std=0.02 if name.endswith("bias") else 0.15)
                    if "norm" in name and name.endswith("weight"):
                        value.data.add_(1.0)
            made[architecture] = tmp_path_factory.mktemp("bases") / architecture
            model.save_pretrained(made[architecture])
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def load(base_folder: Callable[[str], Path]) -> Callable[..., PreTrainedModel]:
    """Load an architecture from its folder, in evaluation mode."""

    def loaded(architecture: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(base_folder(architecture), dtype=dtype).eval()

    return loaded


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Two sequences of token ids."""
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
