"""The stable rank of what goes into each layer, over all batches of a measurement.

Legend: B sequences, T positions, N counted tokens, D input features, V vocabulary.

::

    with record_activations(model) as recorder:
        for batch in batches:
            recorder.mask(batch["attention_mask"])
            model(**batch)
    rows = recorder.rows(run="run", seed=0, step=0)

Contract: ``st(A) = ||A||_F^2 / ||A||_2^2`` of the matrix A of all counted inputs of a module, uncentred: the activation
of the layerwise condition ``nr(G) >= st(A)`` (arXiv 2512.04299, eq. 1.8 and table 1; METHODS.md 5.2). The Gram matrices
of the batches are added and one spectrum is taken: never an average of ratios. Inputs are taken as the layer sees them,
so a norm's learned gain is inside. For ``o_proj`` that is the true input, the attention's output; the RMS-normed stream
that the paper uses there instead is the input of ``q_proj``, in its own row. An embedding multiplies the one-hot
token indicator: ``st = 1 / p_max`` exactly, p_max the share of the commonest token.

The model's mode, gradients and random states are untouched; the hooks are gone when the block ends, however it ends. A
forward pass that gradient checkpointing repeats inside the backward pass is not counted again.

Numerics: inputs are cast to fp64 before the product and added in fp64. An entry of a Gram matrix of N tokens is off by
at most ``N u sum |x||x|``, u = 2^-53, whatever the order of summation (Higham 2002, section 3.1), so the matrix by at
most ``N u ||A||_F^2`` in Frobenius norm; ``eigvalsh`` adds at most ``100 u D^2 ||A^T A||_F`` (the allowance of
spectral/exact.py). The trace and, by Weyl, the top eigenvalue move by no more than the sum e of the two, so ::

    st in [ (t - e) / (lambda_1 + e) , (t + e) / (lambda_1 - e) ]  intersected with [1, min(N, D)]

Squares in fp64 are safe here because only the top and the sum are read, never small singular values.

Cost: 2 N D^2 operations in fp64 a distinct input (slow on consumer GPUs), 8 D^2 bytes a distinct input, and one
``eigvalsh`` of it. Modules that are given one and the same tensor (q, k, v; gate, up) share all three.

Null: a Gaussian token matrix (N, D). Embeddings have none.

Left out on purpose: the N-by-N route for more features than ``max_features``, which would have to keep every token;
centring; several processes, whose Grams would have to be summed; a uniform-token null for embeddings.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from stablerank.errors import DataError
from stablerank.probes.hooks import LINEAR, choose, counted, first_input, in_backward, misaligned, row_name, token_mask
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate, undefined
from stablerank.spectral.nulls import NO_NULL, Null, dense_null

TokenSet = Literal["all_nonpad", "loss_tokens"]

_UNIT = 2.0**-53


class ActivationRecorder:
    """Gram matrices of module inputs, made by :func:`record_activations`."""

    def __init__(
        self, modules: dict[str, nn.Module], token_set: TokenSet, max_features: int, *, with_grad_only: bool = False
    ) -> None:
        """``features`` holds the D (or V) of every module, ``refused`` a sentence for every module left out."""
        self.token_set = token_set
        self.features = {name: _features(module) for name, module in modules.items()}
        self.refused = {
            name: f"Its {self.features[name]} input features exceed max_features={max_features}; raise it."
            for name, module in modules.items()
            if isinstance(module, LINEAR) and self.features[name] > max_features
        }
        self._modules, self._with_grad_only = modules, with_grad_only
        self._mask: Tensor | None = None
        self._has_mask = False
        self._sums = self._empty_sums()

    def mask(self, mask_BT: Tensor | None) -> None:
        """Which tokens ``(B, T)`` of the next forward passes count; None counts all: say so where nothing is padded.

        Raises:
            DataError: the mask is not 2-D.
        """
        self._mask, self._has_mask = token_mask(mask_BT), True

    def rows(self, *, run: str, seed: int, step: int, nulls: bool = True) -> list[GeometryRow]:
        """One ``stable_rank`` row a module, in the model's order; the recorder then starts afresh.

        ``nulls``: whether random tokens stand beside them, drawn afresh for every count of tokens.
        Status ``refused``: see ``refused``; ``empty``: no counted token ever reached the module.
        """
        moment, sums = Moment(run, seed, step), self._sums
        self._sums = self._empty_sums()
        measured = {part: part.stable_rank() for part in {sums[name] for name in sums if name not in self.refused}}
        return [self._row(name, part, measured, moment, nulls) for name, part in sums.items()]

    def _row(
        self, name: str, part: "_Sum", measured: dict["_Sum", Estimate], moment: Moment, nulls: bool
    ) -> GeometryRow:
        estimate, null, tokens = undefined("refused", passes=0), NO_NULL, 0
        if name not in self.refused:
            estimate, null, tokens = measured[part], part.null() if nulls and part.tokens else NO_NULL, part.tokens
        return geometry_row(row_name(name), "activation", "stable_rank", estimate, null, moment, tokens=tokens)

    def observe(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pre-hook of one module."""
        if name in self.refused or in_backward() or (self._with_grad_only and not torch.is_grad_enabled()):
            return
        if not self._has_mask:
            raise DataError(
                f"{name} ran before the recorder knew which tokens count: call `recorder.mask(attention_mask)` before "
                "the forward pass, or `recorder.mask(None)` to count every token."
            )
        values = first_input(args, kwargs)
        with torch.no_grad():
            grown = self._sums[name].plus(values, self._mask)
        if grown is None:
            self.refused[name] = misaligned(values, self._mask)
        else:
            self._sums[name] = grown

    def _empty_sums(self) -> dict[str, "_Sum"]:
        """Every module starts from the empty sum of its size: what they share later depends on what they are given."""
        grams = {size: _Gram() for size in set(self.features.values())}
        return {
            name: grams[self.features[name]] if isinstance(module, LINEAR) else _Indicator(self.features[name])
            for name, module in self._modules.items()
        }


@contextmanager
def record_activations(
    model: nn.Module,
    modules: str | None = None,
    *,
    token_set: TokenSet = "all_nonpad",
    max_features: int = 8192,
    with_grad_only: bool = False,
) -> Iterator[ActivationRecorder]:
    """Record the inputs of a model's layers while the block runs.

    Args:
        model: any module; unwrap DDP first.
        modules: regular expression searched in the names of linear layers and embeddings. By default every linear layer
            is recorded: those of the blocks, the head, and an adapter's two factors.
        token_set: what the masks given to ``recorder.mask`` stand for, kept as ``recorder.token_set`` to be stated with
            the rows: every token that is not padding, or those that carry loss.
        max_features: linear layers with more input features are refused; a Gram matrix takes 8 D^2 bytes, which is
            512 MiB at the default.
        with_grad_only: pass over forward passes under ``no_grad``, such as those that generate.

    Raises:
        ModelError: no module matches.
    """
    kinds = LINEAR if modules is None else (*LINEAR, nn.Embedding)
    chosen = choose(model, kinds, modules or "")
    recorder = ActivationRecorder(chosen, token_set, max_features, with_grad_only=with_grad_only)
    with ExitStack() as hooks:
        for name, module in recorder._modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(recorder.observe, name), with_kwargs=True))
        yield recorder


@torch.no_grad()
def gram_stable_rank(gram_DD: Tensor, tokens: int) -> Estimate:
    """The stable rank of N tokens from their fp64 Gram matrix, with the interval of the module header."""
    if tokens == 0:
        return undefined("empty", passes=0)
    if not gram_DD.isfinite().all():
        return undefined("non_finite")
    energies_D = torch.linalg.eigvalsh(gram_DD)
    total, largest, features = gram_DD.trace().item(), energies_D[-1].item(), len(energies_D)
    error = _UNIT * (tokens * total + 100 * features**2 * torch.linalg.vector_norm(energies_D).item())
    if largest <= error:
        return undefined("zero")
    ranks = total / largest, (total - error) / (largest + error), (total + error) / (largest - error)
    value, lower, upper = (min(max(rank, 1.0), float(min(tokens, features))) for rank in ranks)
    return Estimate(value, lower, upper, 1, "exact")


class _Sum(Protocol):
    """What has been added up for a module. Adding gives a new sum: modules may share one and part later."""

    tokens: int

    def plus(self, values: Tensor, mask_BT: Tensor | None) -> Self | None:
        """The sum with one more input, or None where the mask cannot be aligned."""

    def stable_rank(self) -> Estimate:
        """Of everything added."""

    def null(self) -> Null:
        """Of as many random tokens."""


class _Gram:
    """A Gram matrix ``(D, D)`` in fp64, and which sum the latest input led to.

    q, k and v hold one sum; q moves to the next, and k and v, given the same tensor, find it there. Weak references,
    for neither the input nor a sum that all have left may be kept alive.
    """

    def __init__(self, gram_DD: Tensor | None = None, tokens: int = 0) -> None:
        self.gram_DD, self.tokens = gram_DD, tokens
        self._latest: tuple[weakref.ref[Tensor], int, Tensor | None, weakref.ref[_Gram]] | None = None

    def plus(self, values: Tensor, mask_BT: Tensor | None) -> "_Gram | None":
        known = self._known(values, mask_BT)
        if known is not None:
            return known
        x_ND = counted(values, mask_BT)
        if x_ND is None:
            return None
        x_ND = x_ND.double()
        product_DD = x_ND.mT @ x_ND
        grown = _Gram(product_DD if self.gram_DD is None else product_DD.add_(self.gram_DD), self.tokens + len(x_ND))
        self._latest = weakref.ref(values), _version(values), mask_BT, weakref.ref(grown)
        return grown

    def stable_rank(self) -> Estimate:
        return undefined("empty", passes=0) if self.gram_DD is None else gram_stable_rank(self.gram_DD, self.tokens)

    def null(self) -> Null:
        assert self.gram_DD is not None, "a null is asked for only where tokens were counted"
        return dense_null(self.tokens, len(self.gram_DD))

    def _known(self, values: Tensor, mask_BT: Tensor | None) -> "_Gram | None":
        if self._latest is None:
            return None
        tensor, version, mask, grown = self._latest
        is_same = tensor() is values and version == _version(values) and mask is mask_BT
        return grown() if is_same else None


class _Indicator:
    """How often each token came: all there is to know of a one-hot matrix ``(N, V)``."""

    def __init__(self, vocabulary: int, counts_V: Tensor | None = None) -> None:
        self.vocabulary, self.counts_V = vocabulary, counts_V
        self.tokens = 0 if counts_V is None else int(counts_V.sum())

    def plus(self, values: Tensor, mask_BT: Tensor | None) -> "_Indicator | None":
        ids_N1 = counted(values[..., None], mask_BT)
        if ids_N1 is None:
            return None
        counts_V = torch.bincount(ids_N1.flatten(), minlength=self.vocabulary)
        return _Indicator(self.vocabulary, counts_V if self.counts_V is None else counts_V + self.counts_V)

    def stable_rank(self) -> Estimate:
        if self.counts_V is None or not self.tokens:
            return undefined("empty", passes=0)
        value = self.tokens / int(self.counts_V.max())
        return Estimate(value, value, value, 1, "exact")

    def null(self) -> Null:
        return NO_NULL


def _features(module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    return int(module.in_features if isinstance(module, nn.Linear) else module.nx)  # type: ignore[arg-type]


def _version(values: Tensor) -> int:
    """How often a tensor was written to in place; one made in inference mode does not say."""
    return 0 if values.is_inference() else values._version
