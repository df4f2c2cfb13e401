"""The geometry of what training changed: one update a trained matrix, measured against random updates of its structure.

Legend: O output features, I input features, R adapter rank, N updates of one shape.

Contract: reads weights only; no forward pass, no gradient, no random state, no change of training mode. A LoRA update
is ``scale * B A`` of the factors as they stand, merged or not, and is never formed; a full update is the trained weight
minus its snapshot. At step 0 of an ordinary LoRA the update is exactly zero: stable rank NaN, status ``zero``.

Numerics: adapters in fp64 with a rounding interval (spectral/exact.py), those of one shape in one batched QR and SVD;
full updates by certified Lanczos (spectral/certified.py): within 1e-3 but for a probability of 1e-6, a few passes each.

A row's ``layer`` is the first number in the name and ``module`` what follows it. Encoder-decoder models number two
stacks alike and are outside the domain.

Left out on purpose: convolutions, PEFT's expert stacks (``target_parameters``) and LoRA variants (DoRA, KaSA, aLoRA and
others), whose update is not a plain ``scale * B A``, are skipped; biases and norms are not matrices. Sharded parameters
(FSDP, ZeRO-3) are not gathered.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from stablerank.errors import ModelError
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.certified import DELTA, top_of_spectrum
from stablerank.spectral.exact import (
    Estimate,
    Spectra,
    factored_spectra,
    frobenius_estimates,
    stable_rank_estimates,
)
from stablerank.spectral.nulls import NO_NULL, Null, dense_null, factored_null
from stablerank.spectral.operators import Difference, Factored
from stablerank.spectral.precision import at_least_fp32


@dataclass(frozen=True, eq=False)
class NamedUpdate:
    """The update of one matrix and the name of the module that holds it."""

    name: str
    operator: Factored | Difference


def adapter_updates(model: nn.Module, adapter: str = "default") -> list[NamedUpdate]:
    """The updates of one LoRA adapter: linear layers and embeddings, in the model's order.

    Raises:
        ModelError: no layer holds a measurable adapter of that name.
    """
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer))
    found = ((name, _factors(layer, adapter)) for name, layer in layers)
    updates = [NamedUpdate(name, factors) for name, factors in found if factors is not None]
    if not updates:
        raise ModelError(
            f"No layer of {type(model).__name__} holds a plain LoRA adapter named {adapter!r} on a linear or embedding "
            "layer: name an adapter that the model has, or measure full updates against a snapshot."
        )
    return updates


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU, in fp32 at least, of every trainable 2-D weight that is not an adapter's factor."""
    return {name: at_least_fp32(weight.detach()).to("cpu", copy=True) for name, weight in _trained_matrices(model)}


def full_updates(model: nn.Module, initial: Mapping[str, Tensor]) -> list[NamedUpdate]:
    """The updates of every weight that :func:`snapshot` takes, relative to the snapshot ``initial``.

    Raises:
        ModelError: a trainable matrix has no entry in the snapshot.
    """
    return [
        NamedUpdate(name.removesuffix(".weight"), Difference(weight.detach(), _before(initial, name)))
        for name, weight in _trained_matrices(model)
    ]


def measure_updates(updates: Sequence[NamedUpdate], *, run: str, seed: int, step: int) -> list[GeometryRow]:
    """Two rows an update, ``stable_rank`` and ``frobenius``, in the order of ``updates``."""
    measured: dict[int, list[tuple[str, Estimate, Null]]] = {}
    for indices, ranks, norms, null in _batches([update.operator for update in updates]):
        for index, rank, norm in zip(indices, ranks, norms, strict=True):
            measured[index] = [("stable_rank", rank, null), ("frobenius", norm, NO_NULL)]
    moment = Moment(run, seed, step)
    return [
        geometry_row(update.name, "update", metric, estimate, null, moment, delta=DELTA)
        for index, update in enumerate(updates)
        for metric, estimate, null in measured[index]
    ]


def _factors(layer: LoraLayer, adapter: str) -> Factored | None:
    """The factors of one layer, or None where the layer has none or its update is not ``scale * B A``."""
    if isinstance(layer, ParamWrapper) or layer.lora_variant.get(adapter) is not None:
        return None
    if adapter in layer.lora_embedding_A:  # the update is (B A)^T there: the same singular values
        b_OR, a_RI = layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
    elif adapter in layer.lora_A and layer.lora_A[adapter].weight.ndim == 2:
        b_OR, a_RI = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    else:
        return None
    return Factored(b_OR.detach(), a_RI.detach(), layer.scaling[adapter])


def _trained_matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.ndim == 2 and ".lora_" not in name:
            yield name, weight


def _before(initial: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in initial:
        raise ModelError(
            f"The snapshot of {len(initial)} matrices has no entry {name!r}: take it from the same model, "
            "wrapped the same way, after every trainable weight is unfrozen."
        )
    return initial[name]


Batch = tuple[list[int], list[Estimate], list[Estimate], Null]


def _batches(operators: Iterable[Factored | Difference]) -> Iterator[Batch]:
    """Positions, stable ranks and norms, with the null of their structure; factored updates batched by shape."""
    factored: dict[tuple[object, ...], list[tuple[int, Factored]]] = defaultdict(list)
    for index, operator in enumerate(operators):
        if isinstance(operator, Difference):
            top = top_of_spectrum(operator)
            yield [index], [top.stable_rank()], [top.frobenius_norm()], dense_null(*operator.shape)
        else:
            b_OR = operator.b_OR
            factored[(*operator.shape, b_OR.shape[1], b_OR.dtype, b_OR.device)].append((index, operator))
    for group in factored.values():
        indices, members = zip(*group, strict=True)
        spectra = _stacked_spectra(members)
        null = factored_null(*members[0].shape, members[0].b_OR.shape[1])
        yield list(indices), stable_rank_estimates(spectra), frobenius_estimates(spectra), null


def _stacked_spectra(members: Sequence[Factored]) -> Spectra:
    b_NOR = torch.stack([member.b_OR for member in members])
    a_NRI = torch.stack([member.a_RI for member in members])
    scale_N = torch.tensor([member.scale for member in members], dtype=torch.float64, device=b_NOR.device)
    return factored_spectra(b_NOR, a_NRI, scale_N)
