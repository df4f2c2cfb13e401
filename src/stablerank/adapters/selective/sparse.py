"""SparseFT: masked entries of the linear weights train, with dense kernels; everything else is frozen.

Legend: O output features, I input features, K rank of the reconstruction.

Contract: the gradient of a target weight is zero off its mask as soon as autograd delivers it: before accumulation,
before clipping (the norm is that of the masked gradient) and before the optimiser, whose state stays exactly zero
there. An entry off the mask therefore keeps its bits under any optimiser that works entry by entry (SGD, Adam's and
Lion's families) *without weight decay*, which would shrink it, and without a step that mixes entries, as Muon's does.

The mask is a function of the weight when `train_sparse` is called: call it on the base, before a checkpoint is loaded.
It is no part of the saved model; a resume computes it again, equal on one machine with one number of threads. The
gradient hooks do not survive a ``deepcopy`` of the model, nor FSDP and ZeRO-3, which replace the parameters.

Numerics: thresholds are exact for that one matrix (update_masks.py). Ties with a threshold belong to a mask, a mask of
a zero matrix is empty, so the kept share is reported, never assumed. Cost: the masks of GeoRA's start (inits/geora.py);
then one byte an entry, and full-size gradients and optimiser state.

Source: the SparseFT baseline of GeoRA (2601.09361), whose mask is not published: "-68 % trainable parameters" fits
GeoRA's union at rho = 0.2, the default here (METHODS.md 2.1, 2.5).

Left out on purpose: sparse kernels or optimiser states; expert stacks and convolutions.
"""

from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from stablerank.adapters.inits.geora import union_mask
from stablerank.adapters.selective.in_place import require_in_place
from stablerank.errors import ModelError, RecipeError

_MASK = "trained_mask_OI"
"""A plain attribute of the layer: DDP sends buffers to every rank at every step."""


def train_sparse(
    model: PreTrainedModel,
    rho: float = 0.2,
    spectral_mask: bool = True,
    euclidean_mask: bool = True,
    rank: int = 16,
    targets: str | Sequence[str] = "all-linear",
) -> PreTrainedModel:
    """Train the entries of the target weights that a mask keeps.

    Args:
        model: the base, as it was loaded.
        rho: share of smallest entries that each mask keeps.
        spectral_mask: keep the entries small in the rank-``rank`` reconstruction of the weight.
        euclidean_mask: keep the entries small in the weight itself.
        rank: rank of that reconstruction, at most the matrix's smaller side.
        targets: as PEFT's ``target_modules``: ``all-linear`` without the output head, names, or a regular expression.

    Raises:
        RecipeError: no mask is asked for.
        ModelError: the model lacks the targets, has masks already, is wrapped by PEFT, quantised, or not in fp32.
    """
    require_in_place(model, "SparseFT")
    if not (spectral_mask or euclidean_mask):
        raise RecipeError("SparseFT trains what a mask keeps, but both are off; set spectral_mask or euclidean_mask.")
    linears = target_layers(model, targets)
    if kept_shares(model):
        raise ModelError(
            f"This {type(model).__name__} has masks already, of the weights it had then; load the base again."
        )
    model.requires_grad_(False)
    for linear in linears.values():
        weight_OI, head = linear.weight.detach(), min(rank, *linear.weight.shape)
        setattr(linear, _MASK, union_mask(weight_OI, head, rho, spectral_mask, euclidean_mask))
        linear.weight.requires_grad_(True)
        linear.weight.register_hook(_masking(linear))  # type: ignore[no-untyped-call]
    return model


def target_layers(model: PreTrainedModel, targets: str | Sequence[str] = "all-linear") -> dict[str, nn.Linear]:
    """The linear layers by name that ``targets`` means, as PEFT reads it.

    Raises:
        ModelError: there is none.
    """
    named = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (
            module is not model.get_output_embeddings()
            if targets == "all-linear"
            else check_target_module_exists(named, name)
        )
    }
    if not linears:
        raise ModelError(
            f"{type(model).__name__} has no linear layer for targets={targets!r}; use 'all-linear' or layer names."
        )
    return linears


def kept_shares(model: nn.Module) -> dict[str, float]:
    """The share of entries that trains, for every masked weight by its parameter's name."""
    return {
        f"{name}.weight": getattr(module, _MASK).double().mean().item()
        for name, module in model.named_modules()
        if hasattr(module, _MASK)
    }


def _masking(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The gradient hook of one layer's weight."""

    def masked(gradient_OI: Tensor) -> Tensor:
        mask_OI = getattr(linear, _MASK).to(gradient_OI.device)
        setattr(linear, _MASK, mask_OI)  # moved once, to where the model went since
        return torch.where(mask_OI, gradient_OI, 0)  # not a product: an overflowed entry would leave NaN off the mask

    return masked
