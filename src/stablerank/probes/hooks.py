"""What the activation and the gradient probe share: which modules, under which name, and which tokens.

Legend: B sequences, T positions, N counted tokens, D features.

Tokens. A mask ``(B, T)`` chooses among inputs ``(B, T, D)``, ``(B, T, H, D)`` or ``(B * T, D)``. Anything else, such as
the tokens that a router sent to one expert or the last positions that ``logits_to_keep`` left over, cannot be aligned
with it: the probe then refuses the module rather than guess.

Names. PEFT wraps a layer as ``q_proj.base_layer`` beside ``q_proj.lora_A.default``. Rows call them ``q_proj`` and
``q_proj.lora_A``, so that they join with the rows of updates; an adapter of another name keeps it.

Left out on purpose: modules that are not ``nn.Linear`` (or GPT-2's ``Conv1D``), such as experts stacked in one 3-D
parameter, and compiled models, whose hooks are traced once.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stablerank.errors import DataError, ModelError

LINEAR = (nn.Linear, Conv1D)


def choose(model: nn.Module, kinds: tuple[type[nn.Module], ...], pattern: str) -> dict[str, nn.Module]:
    """Modules of these kinds in whose full name the regular expression ``pattern`` is found, in the model's order.

    Raises:
        ModelError: there is none.
    """
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    found = {name: module for name, module in named if re.search(pattern, name)}
    if not found:
        words = ", ".join(kind.__name__ for kind in kinds)
        raise ModelError(
            f"{type(model).__name__} has no module of type {words} whose name matches {pattern!r}: "
            "give a regular expression that finds one of `model.named_modules()`."
        )
    return found


def row_name(name: str) -> str:
    """A module's name without what PEFT's wrapping put into it."""
    return name.removesuffix(".base_layer").removesuffix(".default")


def token_mask(mask_BT: Tensor | None) -> Tensor | None:
    """The mask as booleans; None stands for "every token".

    Raises:
        DataError: it is not 2-D.
    """
    if mask_BT is not None and mask_BT.ndim != 2:
        raise DataError(
            f"A token mask has the shape (sequences, positions), but this one is {tuple(mask_BT.shape)}: "
            "give the mask of the whole batch, or None to count every token."
        )
    return None if mask_BT is None else mask_BT.bool()


def counted(values: Tensor, mask_BT: Tensor | None) -> Tensor | None:
    """The counted tokens ``(N, D)`` of values ``(..., D)``, or None where the mask cannot be aligned with them.

    Tokens are selected, not multiplied by zero: NaN under the mask must not count either.
    """
    flat = values.reshape(-1, values.shape[-1])
    if mask_BT is None:
        return flat
    mask_BT = mask_BT.to(values.device)
    if values.shape[:2] == mask_BT.shape and values.ndim > 2:
        mask_BT = mask_BT.reshape(*mask_BT.shape, *[1] * (values.ndim - 3)).expand(values.shape[:-1])
    elif values.ndim != 2 or len(values) != mask_BT.numel():
        return None
    return flat[mask_BT.reshape(-1)]


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a linear layer or an embedding was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def misaligned(values: Tensor, mask_BT: Tensor | None) -> str:
    """Why a module is refused, in one sentence."""
    shape = None if mask_BT is None else tuple(mask_BT.shape)
    return f"Its input {tuple(values.shape)} cannot be aligned with the token mask {shape}; choose other modules."


def in_backward() -> bool:
    """Whether this forward pass is a recomputation inside a backward pass, as gradient checkpointing runs it."""
    return torch._C._current_graph_task_id() != -1
