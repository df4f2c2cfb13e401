"""Nuclear and stable rank of the full-weight gradient of each block, whether or not the weight is trained.

Legend: O output features, I input features, K = min of them, N tokens, B sequences, T positions.

::

    with record_gradients(model) as recorder:
        for batch in micro_batches:
            model(**batch).loss.backward()
    rows = recorder.rows(run="run", seed=0, step=10)

Contract: ``G = delta^T x (O, I)``, x the inputs of a linear layer and delta the gradient at its outputs, summed over
every backward pass inside the block: what ``weight.grad`` would be, also where the weight is frozen, quantised or under
LoRA. Its ``nr(G) = ||G||_*^2 / ||G||_F^2`` is one side of the layerwise condition (arXiv 2512.04299, eq. 1.8;
METHODS.md 5.6). Where an adapter is trained, its own gradients ``s B^T G`` and ``s G A^T`` follow as ``.lora_A`` and
``.lora_B``, read from ``.grad`` when ``rows`` is called. A weight used twice (a tied head) gets this use's gradient.

Tokens: all of them by default, for every token with a non-zero delta multiplies the weight, the prompt's included, not
only those that carry loss; ``tokens`` counts the non-zero ones. ``recorder.mask`` restricts G, but not ``.grad``.

Gradient checkpointing counts once, several backward passes add, loss and random states are untouched, and hooks are
gone when the block ends, however it ends. So that a frozen first layer has a delta at all, the embedding's output
requires grad inside the block. Forward and backward pass of a micro-batch both belong inside the block.

Numerics: delta and x are cast to fp32 (fp64 stays fp64) and added in that type, autocast off; an entry is off by up to
``N 2^-24 sum |delta||x|``, in practice by far less, and TF32 is as the caller has it. Singular values are those of the
accumulated G in fp64, and the intervals (spectral/exact.py, spectral/spectrum_metrics.py) cover that step alone.

Null: with N < K the gradient has rank N by construction and is held against Gaussian factors ``(O, N) (N, I)``,
otherwise against a Gaussian matrix ``(O, I)``. Real tokens are alike; that is what the null is there to show.

Cost: 4 O I bytes a block until ``rows`` releases it, 2 N O I operations a backward pass, one fp64 SVD a block, and the
null of each structure. Inputs are held through autograd, so checkpointed ones are not kept but recomputed. The scale
of the loss (fp16 scaling, 1 / accumulation steps) is inside ``frobenius``; the ranks do not see it.

Left out on purpose: averaging over data-parallel ranks; embeddings; compiled models.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from stablerank.probes.hooks import LINEAR, choose, counted, first_input, misaligned, row_name, token_mask
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate, frobenius_estimates, spectrum, stable_rank_estimates, undefined
from stablerank.spectral.functionals import stable_rank
from stablerank.spectral.nulls import FEWEST_DRAWS, NO_NULL, Null, dense_null, summary
from stablerank.spectral.operators import Dense
from stablerank.spectral.precision import at_least_fp32
from stablerank.spectral.spectrum_metrics import spectrum_metric
from stablerank.spectral.spectrum_nulls import gaussian_spectra, spectrum_null

IN_BLOCKS = r"^(?!.*\.lora_)(.*\.)?\d+\."
"""Layers inside numbered blocks that are not an adapter's factor."""

_MANY_DRAWS, _SMALL = 200, 128

METRICS = ("nuclear_rank", "stable_rank", "frobenius")


@dataclass(eq=False)
class _Gradient:
    """What one layer has gathered."""

    matrix_OI: Tensor
    tokens: Tensor


class GradientRecorder:
    """Full-weight gradients, made by :func:`record_gradients`."""

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        """``refused`` holds a sentence for every module whose tokens could not be told."""
        self.refused: dict[str, str] = {}
        self._model, self._modules = model, modules
        self._mask: Tensor | None = None
        self._gradients: dict[str, _Gradient] = {}
        self._open = True

    def mask(self, mask_BT: Tensor | None) -> None:
        """Restrict the next forward passes to tokens ``(B, T)``; None, the default, counts all.

        Raises:
            DataError: the mask is not 2-D.
        """
        self._mask = token_mask(mask_BT)

    def rows(self, *, run: str, seed: int, step: int, nulls: bool = True) -> list[GeometryRow]:
        """Rows ``nuclear_rank``, ``stable_rank``, ``frobenius`` a block; each gradient is released once it is measured.

        ``nulls``: whether random gradients stand beside them; they cost more than the rest.
        Status ``empty``: no backward pass reached the layer; ``refused``: see ``refused``.
        """
        moment = Moment(run, seed, step)
        return [row for name in self._modules for row in self._block_rows(name, moment, nulls)]

    def _block_rows(self, name: str, moment: Moment, nulls: bool) -> list[GeometryRow]:
        gradient = self._gradients.pop(name, None)
        if name in self.refused or gradient is None:
            nothing = undefined("refused" if name in self.refused else "empty", passes=0), NO_NULL
            return _rows(name, [nothing] * len(METRICS), 0, moment)
        tokens = int(gradient.tokens)
        rows = matrix_rows(name, gradient.matrix_OI, tokens, moment, nulls)
        for factor, weight in self._factors(name):
            if weight.grad is not None:
                rows += matrix_rows(factor, weight.grad, tokens, moment, nulls)
        return rows

    def _factors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The trained factors beside a wrapped layer."""
        wrapper = name.removesuffix(".base_layer")
        for inner, weight in self._model.get_submodule(wrapper).named_parameters():
            if inner.startswith(("lora_A.", "lora_B.")) and weight.ndim == 2:
                yield f"{wrapper}.{inner.removesuffix('.weight')}", weight

    def watch(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """The forward hook of one layer: await the gradient at its output, if there will be one.

        Checkpointing in its two forms: the reentrant one runs forward without grad first, and only the repetition gets
        here; the other repeats it on a graph that no backward pass ever runs through.
        """
        if output.requires_grad and torch.is_grad_enabled() and name not in self.refused:
            anchor = torch.empty(0, requires_grad=True)
            held: Any = _Hold.apply(first_input(args, kwargs).detach(), anchor)  # type: ignore[no-untyped-call]
            add = partial(self._add, name, held.grad_fn, self._mask)
            output.register_hook(add)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _add(self, name: str, held: Any, mask: Tensor | None, delta: Tensor) -> None:
        if not self._open or name in self.refused:
            return
        (x,) = held.saved_tensors
        delta_NO, x_NI = counted(delta, mask), counted(x, mask)
        if delta_NO is None or x_NI is None:
            self.refused[name] = misaligned(x, mask)
            return
        with torch.autocast(x.device.type, enabled=False):
            product_OI = _product(delta_NO, x_NI)
        tokens = (delta_NO != 0).any(-1).sum()
        if name in self._gradients:
            self._gradients[name].matrix_OI += product_OI
            self._gradients[name].tokens += tokens
        else:
            self._gradients[name] = _Gradient(product_OI, tokens)


@contextmanager
def record_gradients(model: nn.Module, modules: str | None = None) -> Iterator[GradientRecorder]:
    """Record the full-weight gradient of a model's layers while the block runs.

    Args:
        model: any module; unwrap DDP first.
        modules: regular expression searched in the names of linear layers. By default those inside the blocks; a head
            of 150,000 by 4096 takes 2.4 GiB and an SVD to match, so it is recorded only when named.

    Raises:
        ModelError: no module matches.
    """
    recorder = GradientRecorder(model, choose(model, LINEAR, IN_BLOCKS if modules is None else modules))
    with ExitStack() as hooks:
        for name, module in recorder._modules.items():
            hooks.enter_context(module.register_forward_hook(partial(recorder.watch, name), with_kwargs=True))
        if isinstance(model, PreTrainedModel | PeftModel):
            hooks.enter_context(model.get_input_embeddings().register_forward_hook(_require_grad))
        try:
            yield recorder
        finally:
            recorder._open = False


def matrix_rows(name: str, matrix_OI: Tensor, tokens: int, moment: Moment, nulls: bool = True) -> list[GeometryRow]:
    """The three rows of one gradient that N tokens went into."""
    spectra = spectrum(Dense(matrix_OI))
    (stable,), (norm,) = stable_rank_estimates(spectra), frobenius_estimates(spectra)
    nuclear_null = stable_null = NO_NULL
    if nulls and stable.status == "exact" and tokens:
        rank = tokens if tokens < min(matrix_OI.shape) else None
        nuclear_null = spectrum_null("nuclear_rank", *matrix_OI.shape, rank)
        stable_null = stable_rank_null(*matrix_OI.shape, rank)
    nuclear = spectrum_metric("nuclear_rank", spectra)
    return _rows(name, [(nuclear, nuclear_null), (stable, stable_null), (norm, NO_NULL)], tokens, moment)


@cache
def stable_rank_null(out_features: int, in_features: int, rank: int | None) -> Null:
    """The stable rank of random gradients; a rank of thousands is drawn one matrix at a time, and 20 times only."""
    if rank is None:
        return dense_null(out_features, in_features)
    draws = _MANY_DRAWS if rank <= _SMALL else FEWEST_DRAWS
    spectra = gaussian_spectra(out_features, in_features, rank, draws=draws, seed=0)
    sample = np.array([stable_rank(torch.from_numpy(values_R)).item() for values_R in spectra])
    return summary(sample, "gaussian_factors")


class _Hold(torch.autograd.Function):
    """Keep a tensor the way autograd keeps one: checkpointing then drops and recomputes it, offloading moves it.

    A closure over the tensor would keep it alive through both. Nothing ever flows through this node.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return anchor.new_empty(0)


def _rows(name: str, measured: list[tuple[Estimate, Null]], tokens: int, moment: Moment) -> list[GeometryRow]:
    return [
        geometry_row(row_name(name), "gradient", metric, estimate, null, moment, tokens=tokens)
        for metric, (estimate, null) in zip(METRICS, measured, strict=True)
    ]


def _product(delta_NO: Tensor, x_NI: Tensor) -> Tensor:
    """``delta^T x`` in the wider of the two types, fp32 at least."""
    delta_NO, x_NI = at_least_fp32(delta_NO), at_least_fp32(x_NI)
    dtype = torch.promote_types(delta_NO.dtype, x_NI.dtype)
    return delta_NO.to(dtype).mT @ x_NI.to(dtype)


def _require_grad(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)
