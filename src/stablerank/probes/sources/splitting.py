"""The matrices in a stored tensor: itself, the projections of a fused weight, the experts of a stack.

Contract: a name says which linear map of the model a part is; the ending ``.weight`` is dropped, a fused ``qkv_proj``
becomes ``q_proj``, ``k_proj`` and ``v_proj``, and expert 7 of ``mlp.experts.gate_up_proj`` gives
``mlp.experts.7.gate_proj`` and ``mlp.experts.7.up_proj``. Parts keep the orientation on disk, so `Conv1D` weights are
``(I, O)``: no spectrum depends on it. Where the config does not say how a fused weight is laid out, it stays whole
under its own name and ``note`` says why: the spectrum is then that of the fused matrix, never of a wrong cut.

Numerics: none. ``select`` returns a view wherever strides can express the part; the rows of one projection that are
scattered over the heads are the exception and cost one copy of that part.

Left out on purpose: convolutions (three dimensions and more that are no expert stack) and stacks of biases.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from stablerank.probes.sources.fused_layouts import (
    Config,
    Layout,
    LayoutUnknownError,
    Shape,
    expert_layout,
    fused_layout,
    text_config,
)
from stablerank.probes.sources.stored import StoredTensor

_TOWER = re.compile(r"vision|visual|audio|image")
_TOWER_CONFIG: Config = {"model_type": "vision or audio tower"}
_SCALES = re.compile(r"(_scale|_scale_inv|[._]scales|\.absmax|\.SCB)$")
_DBRX_EXPERTS = re.compile(r"\.experts\.mlp\.(w1|v1|w2)$")
_GRANITE_STACKS = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}


@dataclass(frozen=True)
class MatrixPart:
    """One matrix of a stored tensor.

    Attributes:
        name: the linear map, without ``.weight``.
        shape: of what ``select`` returns.
        select: from the tensor as read to the 2-D part of it.
        note: why a fused weight could not be split, or "".
    """

    name: str
    shape: Shape
    select: Callable[[Tensor], Tensor]
    note: str = ""


def why_not(tensor: StoredTensor) -> str | None:
    """Why a tensor holds no matrix, in a word or two that count as a category, or None where it holds one."""
    if tensor.dtype == "BOOL" or re.fullmatch(r"[IU]\d+", tensor.dtype):
        return "integer"
    if tensor.dtype.startswith("C"):
        return "complex"
    if 0 in tensor.shape:
        return "empty"
    if _SCALES.search(tensor.name):
        return "quantisation scales"
    if len(tensor.shape) < 2 or tensor.name.endswith("bias"):
        return "vector"
    if len(tensor.shape) == 2 or (len(tensor.shape) == 3 and _stack_name(tensor.name)):
        return None
    return "convolution"


def matrices(tensor: StoredTensor, config: Config) -> list[MatrixPart]:
    """The matrices of a tensor in the order of its rows or columns; none where `why_not` gives a reason.

    Args:
        tensor: only its name, shape and dtype are looked at.
        config: ``config.json`` of the model, or an empty mapping.
    """
    if why_not(tensor) is not None:
        return []
    config, name = text_config(config), tensor.name.removesuffix(".weight")
    if len(tensor.shape) == 3:
        return _stack(name, tensor.shape, config)
    if _DBRX_EXPERTS.search(name):
        return _flat_stack(name, (tensor.shape[0], tensor.shape[1]), config)
    return _fused(name, (tensor.shape[0], tensor.shape[1]), config)


def _fused(name: str, shape: Shape, config: Config) -> list[MatrixPart]:
    stem, dot, leaf = name.rpartition(".")
    try:
        layout = fused_layout(leaf, shape, _TOWER_CONFIG if _TOWER.search(name) else config)
    except LayoutUnknownError as unknown:
        return [MatrixPart(name, shape, _whole, _kept_whole(unknown))]
    if layout is None:
        return [MatrixPart(name, shape, _whole)]
    return _pieces(stem + dot, shape, layout, _whole)


def _stack(name: str, shape: tuple[int, ...], config: Config) -> list[MatrixPart]:
    """One matrix an expert, or two where gate and up are fused."""
    stem, leaf = _stack_name(name) or ("", "")
    inner, layout, note = (shape[1], shape[2]), None, ""
    if leaf == "gate_up_proj":
        try:
            layout = expert_layout(inner, config)
        except LayoutUnknownError as unknown:
            note = _kept_whole(unknown)
    parts = []
    for expert in range(shape[0]):
        take = partial(_expert, expert=expert)
        if layout is None:
            parts.append(MatrixPart(f"{stem}.{expert}.{leaf}", inner, take, note))
        else:
            parts += _pieces(f"{stem}.{expert}.", inner, layout, take)
    return parts


def _flat_stack(name: str, shape: Shape, config: Config) -> list[MatrixPart]:
    """The experts of dbrx, whose rows lie below each other."""
    section = config.get("ffn_config")
    experts = section.get("moe_num_experts") if isinstance(section, dict) else None
    if type(experts) is not int or experts < 1 or shape[0] % experts:
        note = _kept_whole("config.json gives no ffn_config.moe_num_experts that divides its rows")
        return [MatrixPart(name, shape, _whole, note)]
    stem, _, leaf = name.rpartition(".mlp.")
    rows = shape[0] // experts
    return [
        MatrixPart(f"{stem}.{expert}.{leaf}", (rows, shape[1]), partial(_rows, start=expert * rows, count=rows))
        for expert in range(experts)
    ]


def _stack_name(name: str) -> tuple[str, str] | None:
    """Of a stack of experts the name up to ``experts`` and the projection; None for any other name."""
    stem, _, leaf = name.removesuffix(".weight").rpartition(".")
    if stem.rpartition(".")[2] == "experts":
        return stem, leaf
    if stem.rpartition(".")[2] == "block_sparse_moe" and leaf in _GRANITE_STACKS:
        return f"{stem}.experts", _GRANITE_STACKS[leaf]
    return None


def _pieces(prefix: str, shape: Shape, layout: Layout, take: Callable[[Tensor], Tensor]) -> list[MatrixPart]:
    parts, start = [], 0
    for leaf, width in layout.pieces:
        lines = layout.groups * width
        part_shape = (lines, shape[1]) if layout.axis == 0 else (shape[0], lines)
        select = partial(_piece, take=take, axis=layout.axis, groups=layout.groups, start=start, width=width)
        parts.append(MatrixPart(prefix + leaf, part_shape, select))
        start += width
    return parts


def _kept_whole(reason: object) -> str:
    return f"fused and kept whole: {reason}"


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _rows(tensor: Tensor, *, start: int, count: int) -> Tensor:
    return tensor.narrow(0, start, count)


def _expert(tensor: Tensor, *, expert: int) -> Tensor:
    return tensor[expert]


def _piece(
    tensor: Tensor, *, take: Callable[[Tensor], Tensor], axis: int, groups: int, start: int, width: int
) -> Tensor:
    matrix = take(tensor)
    rows, columns = matrix.shape
    grouped = matrix.view(groups, -1, columns) if axis == 0 else matrix.view(rows, groups, -1)
    return grouped.narrow(axis + 1, start, width).flatten(axis, axis + 1)
