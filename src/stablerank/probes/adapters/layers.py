"""Adapter types whose update only PEFT's own layers can compute: random projections, spectra, circulants, vector banks.

Legend: O output features, I input features.

Contract: PEFT injects the adapter into a skeleton of linear layers that have the right names and shapes and take no
memory (one zero, repeated), loads the file's tensors, and each layer gives its ``get_delta_weight``. No model and no
transformers class is loaded. The shapes come from the file where the parts decide them, else from the base, of which
every adapted weight is needed: a shared projection is as large as the largest of them.

Numerics: the skeleton is fp64, so PEFT converts the stored parts before it multiplies; what PEFT draws again from a
seed (VeRA and kin without ``save_projection``) is as exact as its fp32 draw. The caller's random state is untouched.
All parts of the adapter are in memory while its updates are built.

Source: ``get_delta_weight`` of PEFT's tuners: VeRA 2310.11454, FourierFT 2405.03003, RandLoRA 2502.00987, WaveFT
2505.12532, VB-LoRA 2405.15179, SHiRA 2406.13175, C3A 2407.19342, GraLoRA 2505.20355, DeLoRA 2503.18225, PVeRA.

Left out on purpose: types that multiply the base weight (OFT, BOFT, IA3, HRA, HiRA, RoAd, MiSS) or depend on the input
(Lily, PEANuT, X-LoRA), files that do not name their modules (Uni-LoRA), and layers other than linear ones.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor, nn

from stablerank.errors import ModelError
from stablerank.probes.adapters.types import (
    AdapterFile,
    BaseWeight,
    Parts,
    StoredUpdate,
    each_module,
    need,
    stored_update,
)
from stablerank.probes.sources.stored import Problem
from stablerank.spectral.operators import Dense

PARTS: dict[str, tuple[str, ...]] = {
    "C3A": ("c3a_kernel",),
    "DELORA": ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    "FOURIERFT": ("fourierft_spectrum",),
    "GRALORA": ("gralora_A", "gralora_B"),
    "PVERA": ("pvera_lambda_b", "pvera_lambda_d"),
    "RANDLORA": ("randlora_lambda", "randlora_gamma"),
    "SHIRA": ("shira_weight", "shira_indices"),
    "VBLORA": ("vblora_logits_A", "vblora_logits_B"),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "WAVEFT": ("waveft_spectrum",),
}
"""The types read here, and what each of their modules must have."""


@dataclass(frozen=True, eq=False)
class _Skeleton:
    """An adapter and the shapes ``(O, I)`` of the layers that it adapts."""

    adapter: AdapterFile
    shapes: Mapping[str, tuple[int, int]]


def peft_updates(adapter: AdapterFile, base_weight: BaseWeight | None) -> tuple[list[StoredUpdate], list[Problem]]:
    """The updates of every module, and a problem for each that lacks a part.

    Raises:
        ModelError: the shapes are needed from the base, and it is absent or another model.
    """
    kind = adapter.config["peft_type"]
    if kind in _FILE_SHAPES:
        shapes = {module: shape for module, parts in adapter.modules.items() if (shape := _file_shape(kind, parts))}
    else:
        shapes = {module: _base_shape(kind, module, adapter, base_weight) for module in adapter.modules}
    return each_module(adapter, partial(_read, _Skeleton(adapter, shapes)))


def _read(skeleton: _Skeleton, module: str, parts: Parts) -> Iterator[StoredUpdate]:
    config = skeleton.adapter.config
    need(module, parts, *PARTS[config["peft_type"]])
    transposed = bool(config.get("fan_in_fan_out"))
    if module not in skeleton.shapes:
        found = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
        raise ModelError(f"{module} has parts that make no matrix, {found}: save the adapter again.")
    rows, columns = skeleton.shapes[module]
    shape = (columns, rows) if transposed else (rows, columns)
    yield stored_update(module, shape, parts.values(), partial(_build, skeleton, module, transposed))


def _c3a_shape(parts: Parts) -> tuple[int, int]:
    rows, columns, block = parts["c3a_kernel"].shape
    return rows * block, columns * block


def _delora_shape(parts: Parts) -> tuple[int, int]:
    (rows, _), (_, columns) = parts["delora_B"].shape, parts["delora_A"].shape
    return rows, columns


def _gralora_shape(parts: Parts) -> tuple[int, int]:
    (blocks, inputs, _), (_, _, outputs) = parts["gralora_A"].shape, parts["gralora_B"].shape
    return blocks * outputs, blocks * inputs


_FILE_SHAPES: dict[str, Callable[[Parts], tuple[int, int]]] = {
    "C3A": _c3a_shape,
    "DELORA": _delora_shape,
    "GRALORA": _gralora_shape,
}


def _file_shape(kind: str, parts: Parts) -> tuple[int, int] | None:
    try:
        return _FILE_SHAPES[kind](parts)
    except (KeyError, ValueError, IndexError):
        return None


def _base_shape(kind: str, module: str, adapter: AdapterFile, base_weight: BaseWeight | None) -> tuple[int, int]:
    if base_weight is None:
        raise ModelError(
            f"{adapter.path} is a {kind} adapter, whose file does not hold the shapes of the weights it changes: "
            "name the base with --against BASE."
        )
    weight = base_weight(module)
    if weight is None or weight.ndim != 2:
        found = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
        raise ModelError(
            f"{adapter.path} adapts {module}, for which the base has {found} and not a matrix: name the base that the "
            "adapter was trained on."
        )
    rows, columns = weight.shape
    return (columns, rows) if adapter.config.get("fan_in_fan_out") else (rows, columns)


def _build(skeleton: _Skeleton, module: str, transposed: bool) -> Dense:
    layer = _loaded(skeleton).get_submodule(module)
    with torch.no_grad():
        delta: Tensor = layer.get_delta_weight("default").to_dense().double()  # type: ignore[operator]
    return Dense(delta.mT if transposed else delta)


@lru_cache(maxsize=1)
def _loaded(skeleton: _Skeleton) -> nn.Module:
    """The skeleton with PEFT's layers in it and the file's tensors in them."""
    adapter = skeleton.adapter
    model = _empty_model(skeleton.shapes)
    state = {
        part.name: part.read()
        for parts in (*(adapter.modules[module] for module in skeleton.shapes), adapter.shared)
        for part in parts.values()
    }
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel(model, _config(skeleton))
            result = set_peft_model_state_dict(wrapped, wide)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(f"{adapter.path} does not fit its settings or its base, says PEFT: {error}") from error
    absent = [name for name in result.missing_keys if not name.startswith("base_model.model.")]
    if absent or result.unexpected_keys:
        wrong = ", ".join([*absent, *result.unexpected_keys])
        raise ModelError(f"{adapter.path} lacks tensors that PEFT needs, or has others ({wrong}): save it again.")
    return model


def _empty_model(shapes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Linear layers under their dotted names, each weight one zero that is repeated."""
    root = nn.Module()
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for name, (rows, columns) in shapes.items():
        parent = root
        *path, last = name.split(".")
        for step in path:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = nn.Parameter(zero.expand(rows, columns), requires_grad=False)
        parent.add_module(last, layer)
    return root


def _config(skeleton: _Skeleton) -> PeftConfig:
    """The adapter's settings, aimed at the layers of the skeleton and at nothing else."""
    config = PeftConfig.from_pretrained(str(skeleton.adapter.path.parent))
    config.inference_mode = True
    config.target_modules = list(skeleton.shapes)
    for setting in ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
        setattr(config, setting, None)
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = False
    config.bias = "none"
    return config
