"""Stable rank of post-activations at initialisation: chains of MLP layers, and the blocks of transformers models.

Legend: K units of a layer, N samples.

Contract: `layers` draws ``B_l = act(W_l norm(B_{l-1})) (K, N)``, ``B_0`` Gaussian, every ``W_l`` Gaussian with variance
``1 / K``, and norm dividing each sample by its root mean square, so that a deep chain keeps its scale. An activation
with a non-zero mean under a Gaussian puts a spike into the singular values, and ``st(B_1)`` stays below its
noise-to-signal ratio however wide the layer (theorem 2.6); an odd one and a gate have no mean, and st grows. `blocks`
reads the same off a model that transformers initialises, on random tokens, by the roles of its linear layers.

Numerics: chains in fp64, models in fp32 with Grams in fp64 (probes/activations.py). Source: Davis, Drusvyatskiy
(2512.04299), sections 2.2 and 2.4; METHODS.md 5.3.

Left out on purpose: residual connections in the chains, which `blocks` have.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu, silu
from transformers import AutoModelForCausalLM, PretrainedConfig

from stablerank.probes.activations import record_activations
from stablerank.spectral.exact import stable_rank_exact
from stablerank.spectral.operators import Dense

ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda x_KN, gate_KN: relu(x_KN),
    "squared_relu": lambda x_KN, gate_KN: relu(x_KN).square(),
    "gelu": lambda x_KN, gate_KN: gelu(x_KN),
    "silu": lambda x_KN, gate_KN: silu(x_KN),
    "tanh": lambda x_KN, gate_KN: torch.tanh(x_KN),
    "swiglu": lambda x_KN, gate_KN: silu(gate_KN) * x_KN,
}

ROLES = {
    "down_proj": "post_activation",
    "dense_4h_to_h": "post_activation",
    "up_proj": "before_mlp",
    "dense_h_to_4h": "before_mlp",
    "q_proj": "before_attention",
    "query_key_value": "before_attention",
    "o_proj": "attention_output",
    "dense": "attention_output",
}
"""What the input of a linear layer is, by the last part of its name."""


def layers(activation: str, width: int, depth: int, samples: int, seed: int) -> Iterator[Tensor]:
    """The post-activations ``(K, N)`` of layers 1 to ``depth``."""
    draw = torch.Generator().manual_seed(seed)
    hidden_KN = _normal(width, samples, draw)
    for _ in range(depth):
        normed_KN = hidden_KN / hidden_KN.square().mean(0).sqrt()
        up_KK, gate_KK = (_normal(width, width, draw) / width**0.5 for _ in range(2))
        hidden_KN = ACTIVATIONS[activation](up_KK @ normed_KN, gate_KK @ normed_KN)
        yield hidden_KN


def chain(activation: str, width: int, depth: int, samples: int, seed: int) -> list[float]:
    """The stable rank of each layer's post-activations."""
    return [stable_rank_exact(Dense(each_KN)).value for each_KN in layers(activation, width, depth, samples, seed)]


def blocks(config: PretrainedConfig, sequences: int, length: int, seed: int) -> dict[str, list[float]]:
    """The stable rank at each role of `ROLES`, one a layer, of a random model on uniform random tokens."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, config.vocab_size, (sequences, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), record_activations(model, r"\.\d+\..*(proj|dense|query_key_value)") as recorder:
        recorder.mask(None)
        model(input_ids=ids)
        rows = recorder.rows(run="init", seed=seed, step=0, nulls=False)
    found: dict[str, list[float]] = {}
    for row in rows:
        if role := ROLES.get(row.module.rpartition(".")[2]):
            found.setdefault(role, []).append(row.value)
    return found


def _normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)
