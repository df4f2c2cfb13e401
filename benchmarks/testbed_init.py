"""At initialisation: does the stable rank of post-activations stay bounded in width and depth, and where not?

``python benchmarks/testbed_init.py`` (some minutes on one core) draws chains of MLP layers of several activations, four
samples a unit, and random Llama-, Qwen3- and GPT-NeoX-type models on random tokens, and fits the growth with width and
with the layer as powers, with 95 % t intervals. The rules in `verdicts` were written before the seeds were drawn.
"""

from typing import Any

import numpy as np
from common import ROOT, print_table, write_results
from testbed_features import exponent
from transformers import GPTNeoXConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from stablerank.testbeds.figures import save_panels
from stablerank.testbeds.initialisation import ACTIVATIONS, blocks, chain
from stablerank.testbeds.random_features import RELU, SQUARED_RELU

WIDTHS, DEPTH, SEEDS = (64, 128, 256, 512), 8, (200, 201, 202)
MODEL_WIDTHS, MODEL_DEPTH, SEQUENCES, LENGTH, VOCABULARY = (64, 128, 256, 512), 4, 16, 128, 1024
BOUNDED, GROWS = 0.1, 0.5
SPIKED, MEANLESS = ("relu", "squared_relu", "gelu", "silu"), ("tanh", "swiglu")
GATED, PLAIN = ("llama, SwiGLU", "qwen3, SwiGLU"), ("neox, GELU", "neox, squared ReLU")
CONSTANTS = {"relu": RELU, "squared_relu": SQUARED_RELU}
FIGURE = ROOT / "docs" / "spectral-init.png"


def config_of(family: str, width: int) -> PretrainedConfig:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": MODEL_DEPTH,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
    }
    if family.startswith("neox"):
        act = "relu2" if "squared" in family else "gelu"
        return GPTNeoXConfig(intermediate_size=4 * width, hidden_act=act, **sizes)
    gated = {"intermediate_size": 8 * width // 3, "num_key_value_heads": 4, **sizes}
    return LlamaConfig(**gated) if family.startswith("llama") else Qwen3Config(head_dim=width // 4, **gated)


def chain_arm(activation: str) -> dict[str, Any]:
    """Stable ranks by width, seed and layer, and both growths."""
    ranks = {width: [chain(activation, width, DEPTH, 4 * width, seed) for seed in SEEDS] for width in WIDTHS}
    first = {width: [layers[0] for layers in runs] for width, runs in ranks.items()}
    by_layer = {layer + 1: [run[layer] for run in ranks[WIDTHS[-1]]] for layer in range(DEPTH)}
    return {"ranks": ranks, "in_width": exponent(first), "in_layer": exponent(by_layer)}


def model_arm(family: str) -> dict[str, Any]:
    """The same of a model: width by the mean over layers, at every role."""
    ranks = {
        width: [blocks(config_of(family, width), SEQUENCES, LENGTH, seed) for seed in SEEDS] for width in MODEL_WIDTHS
    }
    roles = list(ranks[WIDTHS[0]][0])
    growth = {
        role: exponent({width: [float(np.mean(run[role])) for run in runs] for width, runs in ranks.items()})
        for role in roles
    }
    return {"ranks": ranks, "in_width": growth}


def verdicts(chains: dict[str, Any], models: dict[str, Any]) -> dict[str, bool]:
    """Each claim by its rule."""

    def post(families: tuple[str, ...]) -> list[dict[str, float]]:
        return [models[family]["in_width"]["post_activation"] for family in families]

    widest = {name: max(run[0] for run in found["ranks"][WIDTHS[-1]]) for name, found in chains.items()}
    return {
        f"MLP, activations with a mean: exponent in width below {BOUNDED}": all(
            chains[name]["in_width"]["high"] < BOUNDED for name in SPIKED
        ),
        "MLP, ReLU and squared ReLU: first layer at most 1.1 times its constant": all(
            widest[name] <= 1.1 * constant for name, constant in CONSTANTS.items()
        ),
        f"MLP, tanh and SwiGLU: exponent in width above {GROWS}": all(
            chains[name]["in_width"]["low"] > GROWS for name in MEANLESS
        ),
        "MLP, activations with a mean: deeper layers have no larger stable rank": all(
            chains[name]["in_layer"]["low"] <= 0 for name in SPIKED
        ),
        f"models without a gate: exponent in width below {BOUNDED}": all(fit["high"] < BOUNDED for fit in post(PLAIN)),
        f"gated models: exponent in width above {GROWS}": all(fit["low"] > GROWS for fit in post(GATED)),
    }


def _readable(fit: dict[str, float]) -> str:
    return f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"


def _figure(chains: dict[str, Any], models: dict[str, Any]) -> None:
    def means(runs: Any) -> list[float]:
        return [float(value) for value in np.mean(runs, axis=0)]

    width = {name: (WIDTHS, [means(found["ranks"][w])[0] for w in WIDTHS]) for name, found in chains.items()}
    layer = {name: (range(1, DEPTH + 1), means(found["ranks"][WIDTHS[-1]])) for name, found in chains.items()}
    model = {
        name: (
            MODEL_WIDTHS,
            [float(np.mean([run["post_activation"] for run in found["ranks"][w]])) for w in MODEL_WIDTHS],
        )
        for name, found in models.items()
    }
    panels = {"MLP, first layer": width, f"MLP, width {WIDTHS[-1]}": layer, "models, post-activation": model}
    save_panels(panels, "width (middle: layer)", FIGURE, log_y=True)


def main() -> None:
    chains = {name: chain_arm(name) for name in ACTIVATIONS}
    models = {name: model_arm(name) for name in (*GATED, *PLAIN)}
    rows = [[name, _readable(found["in_width"]), _readable(found["in_layer"])] for name, found in chains.items()]
    print_table("Chains", ["activation", "exponent in width", "in layer"], rows)
    rows = [[name, role, _readable(fit)] for name, found in models.items() for role, fit in found["in_width"].items()]
    print_table("Models", ["model", "role", "exponent in width"], rows)
    judged = verdicts(chains, models)
    print_table("Verdicts", ["claim", "held"], [[claim, str(held)] for claim, held in judged.items()])
    _figure(chains, models)
    settings = {"widths": WIDTHS, "depth": DEPTH, "seeds": SEEDS, "model_widths": MODEL_WIDTHS}
    settings |= {"model_depth": MODEL_DEPTH, "tokens": SEQUENCES * LENGTH, "vocabulary": VOCABULARY}
    write_results("testbed_init", settings, {"chains": chains, "models": models, "verdicts": judged})


if __name__ == "__main__":
    main()
