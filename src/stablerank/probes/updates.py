"""The geometry of what training changed: one update a trained matrix, measured against random updates of its structure.

Legend: O output features, I input features, R adapter rank, N updates of one shape.

Contract: reads weights only; no forward pass, no gradient, no random state, no change of training mode. An adapter's
update is read from its factors as they stand, merged or not, and formed only where it is no product of two
(lora_layers.py); a full update is the trained weight minus its snapshot. At step 0 an update is zero: stable rank NaN,
status ``zero``. A run that trains no matrix (BitFit) has no updates and no rows.

Numerics: products in fp64 with a rounding interval (spectral/exact.py), those of one shape in one batched QR and SVD;
the others by certified Lanczos (spectral/certified.py): within 1e-3 but for a probability of 1e-6, a few passes each.
The interval of a frozen difference is relative to the factors that cancel, so it is wide for a very small update.

A row's ``layer`` is the first number in the name and ``module`` what follows it. Encoder-decoder models number two
stacks alike and are outside the domain.

Left out on purpose: biases and norms, which are not matrices. Sharded parameters (FSDP, ZeRO-3) are not gathered.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stablerank.errors import ModelError
from stablerank.probes.alignment import BaseHead, base_head, head_readings
from stablerank.probes.evaluate import HEAD, Reading, Subject, read
from stablerank.probes.lora_layers import layer_first_product, layer_update, layer_weight
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.certified import DELTA, RTOL, top_of_spectrum
from stablerank.spectral.exact import (
    Estimate,
    Spectra,
    factored_spectra,
    frobenius_estimates,
    stable_rank_estimates,
)
from stablerank.spectral.nulls import NO_NULL, Null, dense_null, factored_null
from stablerank.spectral.operators import Dense, Difference, Factored
from stablerank.spectral.precision import at_least_fp32

Update = Factored | Difference | Dense
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class NamedUpdate:
    """The update of one matrix: the module that holds it, how to build it, and the weight that it changes.

    Both calls may raise :class:`~stablerank.errors.ModelError`, where an adapter is merged into the weight.
    """

    name: str
    build: Callable[[], Update]
    weight: Callable[[], Tensor]

    @property
    def operator(self) -> Update:
        """The update as it is now; a dense one is formed anew each time."""
        return self.build()


def adapter_updates(model: nn.Module, adapter: str = "default") -> list[NamedUpdate]:
    """The updates of one LoRA-type adapter, PEFT's or ours: linear layers and embeddings, in the model's order.

    Raises:
        ModelError: no layer holds a measurable adapter of that name.
    """
    found = [(name, layer, layer_update(layer, adapter)) for name, layer in _lora_layers(model)]
    updates = [NamedUpdate(name, build, partial(layer_weight, layer)) for name, layer, build in found if build]
    if not updates:
        raise ModelError(
            f"No layer of {type(model).__name__} holds a LoRA adapter named {adapter!r} with an update that can be "
            "measured: name an adapter that the model has on linear or embedding layers, or measure full updates "
            "against a snapshot."
        )
    return updates


def first_products(model: nn.Module, adapter: str = "default") -> list[NamedUpdate]:
    """``s B0 A0`` of every layer whose adapter counts its update from there; empty for other adapters."""
    found = [(name, layer, layer_first_product(layer, adapter)) for name, layer in _lora_layers(model)]
    return [
        NamedUpdate(name, _constant(product), partial(layer_weight, layer))
        for name, layer, product in found
        if product is not None
    ]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU, in fp32 at least, of every trainable 2-D weight that is not an adapter's factor."""
    return {name: at_least_fp32(weight.detach()).to("cpu", copy=True) for name, weight in _trained_matrices(model)}


def full_updates(model: nn.Module, initial: Mapping[str, Tensor]) -> list[NamedUpdate]:
    """The updates of every weight that :func:`snapshot` takes, relative to the snapshot ``initial``.

    Raises:
        ModelError: a trainable matrix has no entry in the snapshot.
    """
    pairs = [(name, weight.detach(), _before(initial, name)) for name, weight in _trained_matrices(model)]
    return [
        NamedUpdate(
            name.removesuffix(".weight"), partial(Difference, weight, before), partial(before.to, weight.device)
        )
        for name, weight, before in pairs
    ]


def base_heads(updates: Iterable[NamedUpdate], head: int = HEAD) -> dict[str, BaseHead]:
    """The head of every weight that the updates change, to be computed once a run; cost in probes/alignment.py."""
    return {update.name: base_head(update.weight(), head) for update in updates}


def measure_updates(
    updates: Sequence[NamedUpdate],
    *,
    run: str,
    seed: int,
    step: int,
    kind: str = "update",
    heads: Mapping[str, BaseHead] | None = None,
    nss: bool = False,
) -> list[GeometryRow]:
    """``stable_rank`` and ``frobenius`` of every update, in the order of ``updates``.

    Args:
        updates: what to measure.
        run: column of the rows.
        seed: column of the rows.
        step: column of the rows.
        kind: ``update``, or ``initial`` for first products.
        heads: of the base weights by name, for the rows of probes/alignment.py too.
        nss: whether to read the NSS too, from both whole spectra: cubic in the smaller side.

    Raises:
        ModelError: a head is missing or of another shape, or a weight that is needed has an adapter merged into it.
    """
    moment = Moment(run, seed, step)
    readings: dict[int, list[Reading]] = {}
    for found in _measured(update.operator for update in updates):
        update = updates[found.index]
        readings[found.index] = [
            Reading("stable_rank", found.rank, found.null),
            Reading("frobenius", found.norm, NO_NULL),
        ]
        if heads is not None:
            head = _head(heads, update.name)
            readings[found.index] += head_readings(update.name, found.operator, found.rank, found.norm, head)
        if nss:
            subject = Subject(found.operator, update.weight())
            readings[found.index] += read(subject, ["nss"], rtol=RTOL, delta=DELTA)
    return [
        geometry_row(update.name, kind, reading.metric, reading.estimate, reading.null, moment, delta=DELTA)
        for index, update in enumerate(updates)
        for reading in readings[index]
    ]


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer))


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


def _head(heads: Mapping[str, BaseHead], name: str) -> BaseHead:
    if name not in heads:
        raise ModelError(
            f"The heads of {len(heads)} base weights have no entry {name!r}: compute them for this model's updates."
        )
    return heads[name]


def _constant(value: _T) -> Callable[[], _T]:
    return lambda: value


@dataclass(frozen=True, eq=False)
class _Measured:
    index: int
    operator: Update
    rank: Estimate
    norm: Estimate
    null: Null


def _measured(operators: Iterable[Update]) -> Iterator[_Measured]:
    """Stable rank and norm of each; products are kept and batched by shape, whole matrices measured as they come."""
    factored: dict[tuple[object, ...], list[tuple[int, Factored]]] = defaultdict(list)
    for index, operator in enumerate(operators):
        if isinstance(operator, Factored):
            b_OR = operator.b_OR
            factored[(*operator.shape, b_OR.shape[1], b_OR.dtype, b_OR.device)].append((index, operator))
        else:
            top = top_of_spectrum(operator)
            yield _Measured(index, operator, top.stable_rank(), top.frobenius_norm(), dense_null(*operator.shape))
    for group in factored.values():
        members = [operator for _, operator in group]
        spectra = _stacked_spectra(members)
        ranks, norms = stable_rank_estimates(spectra), frobenius_estimates(spectra)
        null = factored_null(*members[0].shape, members[0].b_OR.shape[1])
        for (index, operator), rank, norm in zip(group, ranks, norms, strict=True):
            yield _Measured(index, operator, rank, norm, null)


def _stacked_spectra(members: Sequence[Factored]) -> Spectra:
    b_NOR = torch.stack([member.b_OR for member in members])
    a_NRI = torch.stack([member.a_RI for member in members])
    scale_N = torch.tensor([member.scale for member in members], dtype=torch.float64, device=b_NOR.device)
    return factored_spectra(b_NOR, a_NRI, scale_N)
