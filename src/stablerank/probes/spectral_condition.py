"""Per block: does a spectral step promise more than a Euclidean one?

Legend: B sequences, T positions, O output features, I input features, R rank of an adapter.

::

    with record_condition(model) as recorder:
        for batch in micro_batches:
            recorder.mask(batch["attention_mask"])
            model(**batch).loss.backward()
    for block in recorder.blocks(run="run", seed=0, step=10):
        print(block.layer, block.module, block.favours, block.advice)

Contract: for a layer with gradient G and input A, gradient descent guarantees a decrease of ``|G|_F^2 / (2 |A|_2^2)``
and spectral descent, whose step is along ``polar(G)``, one of ``|G|_*^2 / (2 |A|_F^2)``. Their ratio is
``nr(G) / st(A)``; above 1 the spectral step promises more (eq. 1.8), above 2 so does its realised decrease. Both sides
come from the same backward passes, Grams and gradients added before any spectrum is taken.

Which activation (the paper's table 1): the input of the layer as the layer sees it, so a norm's gain is inside. For an
attention's output the paper uses the normed stream instead of the true input; that one is ``stream_stable_rank``, the
input of the query projection, and the verdict is about the true input. An embedding's is its one-hot indicator,
``1 / p_max``, beside its own ``.grad``. LoRA's factors have their own condition: A sees x, B sees ``A x``, and neither
``nr`` can exceed R.

Tokens: those of the mask on the activations' side; on the gradient's all with a non-zero gradient, unless
``loss_tokens`` restricts both sides to the mask.

Verdict: ``spectral`` or ``euclidean`` where the intervals of both sides decide, ``undecided`` where they overlap or a
side has no value. The comparison is of one step of plain descent with an exact polar factor: momentum, Newton-Schulz
and AdamW are outside it.

Source: Davis, Drusvyatskiy (2512.04299), sections 1 and 4.4; METHODS.md 5.1, 5.2, 5.6. Numerics and cost: those of
probes/gradients.py and probes/activations.py.

Left out on purpose: gains of norms; splitting a fused query-key-value matrix, which is taken as the one block that the
optimiser sees; averaging over data-parallel ranks.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from stablerank.probes.activations import ActivationRecorder, record_activations
from stablerank.probes.gradients import GradientRecorder, matrix_rows, record_gradients
from stablerank.probes.rows import Moment
from stablerank.runs.geometry_rows import GeometryRow

Favours = Literal["spectral", "euclidean", "undecided"]
Place = tuple[int | None, str]

OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
"""Last names of an attention's output projection."""
QUERIES = ("q_proj", "query_key_value", "c_attn", "qkv_proj", "qkv", "c_q")
"""Last names of what reads the normed stream beside it."""
IN_BLOCKS = r"(^|\.)\d+\."
STRONG = 2.0


@dataclass(frozen=True)
class BlockCondition:
    """The two sides of the condition at one block and step."""

    step: int
    layer: int | None
    module: str
    nuclear_rank: float
    stable_rank: float
    """Of the input."""
    stream_stable_rank: float | None
    """Of the normed stream, for an attention's output."""
    gradient_stable_rank: float
    favours: Favours
    advice: str

    @property
    def ratio(self) -> float:
        """Guaranteed decrease of the spectral step over that of the Euclidean one."""
        return self.nuclear_rank / self.stable_rank

    @property
    def is_strong(self) -> bool:
        """Whether the realised decrease, too, must be larger."""
        return self.favours == "spectral" and self.ratio >= STRONG


def general_threshold(stable_rank: float, gradient_stable_rank: float, alpha: float) -> float:
    """What ``nr(G)`` must reach where the loss also curves by ``C_op |Delta|_2^2``; ``alpha = C_op / L_F``.

    ``(st(A) + alpha) / (1 + alpha / st(G))``: never above st(A) where ``nr(G) >= st(A)`` decides it (section 4.4).
    """
    return (stable_rank + alpha) / (1 + alpha / gradient_stable_rank)


class ConditionRecorder:
    """Both sides, made by :func:`record_condition`."""

    def __init__(
        self, model: nn.Module, gradients: GradientRecorder, activations: ActivationRecorder, loss_tokens: bool
    ) -> None:
        self.rows: list[GeometryRow] = []
        """The rows of both probes behind the latest blocks, without nulls: the condition holds two measurements
        against each other, and random matrices would cost more than both."""
        self._model, self._gradients, self._activations = model, gradients, activations
        self._loss_tokens = loss_tokens

    def mask(self, mask_BT: Tensor | None) -> None:
        """Which tokens of the next forward passes count; None counts all.

        Raises:
            DataError: the mask is not 2-D.
        """
        self._activations.mask(mask_BT)
        if self._loss_tokens:
            self._gradients.mask(mask_BT)

    def blocks(self, *, run: str, seed: int, step: int) -> list[BlockCondition]:
        """One verdict a layer that both sides know, in the model's order; both recorders then start afresh."""
        gradients = self._gradients.rows(run=run, seed=seed, step=step, nulls=False)
        gradients += self._embedding_rows(Moment(run, seed, step))
        inputs = self._activations.rows(run=run, seed=seed, step=step, nulls=False)
        self.rows = [*gradients, *inputs]
        stable = {(row.layer, row.module): row for row in inputs}
        by_place: dict[Place, dict[str, GeometryRow]] = {}
        for row in gradients:
            by_place.setdefault((row.layer, row.module), {})[row.metric] = row
        return [_block(place, rows, stable) for place, rows in by_place.items() if place in stable]

    def _embedding_rows(self, moment: Moment) -> list[GeometryRow]:
        """Of an embedding that is trained and recorded: its whole ``.grad``."""
        name, module = _embedding(self._model)
        if module is None or module.weight.grad is None or name not in self._activations.features:
            return []
        # (V, D) as it lies: ranks do not see the transpose. Rows of unseen tokens are zero.
        used_VD = module.weight.grad[module.weight.grad.abs().amax(1) > 0]
        return matrix_rows(name, used_VD, 0, moment, nulls=False) if len(used_VD) else []


@contextmanager
def record_condition(
    model: nn.Module,
    modules: str | None = None,
    *,
    head: bool = False,
    embedding: bool = False,
    loss_tokens: bool = False,
    max_features: int = 8192,
) -> Iterator[ConditionRecorder]:
    """Record both sides of the condition while the block runs.

    Args:
        model: any module; unwrap DDP first.
        modules: regular expression searched in the names of linear layers; by default those inside the blocks, their
            adapter's factors included.
        head: whether to add the output head: an SVD of the vocabulary by the width.
        embedding: whether to add the input embedding where it is trained, at the same price.
        loss_tokens: whether the mask restricts the gradients too; give a mask of the tokens that carry loss.
        max_features: layers with more input features have no verdict; see `record_activations`.

    Raises:
        ModelError: no module matches.
    """
    blocks = IN_BLOCKS if modules is None else modules
    extra = [_exactly(name) for name in _heads(model)] if head else []
    seen = extra + ([_exactly(_embedding(model)[0])] if embedding and _embedding(model)[1] is not None else [])
    # Position embeddings inside the pattern have no gradient row and drop out of the join.
    with (
        record_gradients(model, "|".join([rf"^(?!.*\.lora_).*({blocks})", *extra])) as gradients,
        record_activations(
            model, "|".join([f"({blocks})", *seen]), max_features=max_features, with_grad_only=True
        ) as activations,
    ):
        yield ConditionRecorder(model, gradients, activations, loss_tokens)


def _block(place: Place, gradient: dict[str, GeometryRow], stable: dict[Place, GeometryRow]) -> BlockCondition:
    nuclear, own, activation = gradient["nuclear_rank"], gradient["stable_rank"], stable[place]
    stream = _stream(place, stable)
    favours = _favours(nuclear, activation)
    ratio = nuclear.value / activation.value
    siblings = {module for layer, module in stable if layer == place[0]}
    return BlockCondition(
        nuclear.step,
        *place,
        nuclear.value,
        activation.value,
        None if stream is None else stream.value,
        own.value,
        favours,
        " ".join([_sentence(favours, ratio, activation, nuclear), *_caveats(place[1], siblings)]),
    )


def _favours(nuclear: GeometryRow, activation: GeometryRow) -> Favours:
    if nuclear.lower >= activation.upper:
        return "spectral"
    return "euclidean" if nuclear.upper < activation.lower else "undecided"


def _sentence(favours: Favours, ratio: float, activation: GeometryRow, nuclear: GeometryRow) -> str:
    if favours == "spectral":
        realised = "and must realise more" if ratio >= STRONG else "though it need not realise more"
        return f"A spectral step promises {ratio:.2g} times the decrease of a Euclidean one, {realised}."
    if favours == "euclidean":
        return f"A Euclidean step promises {1 / ratio:.2g} times the decrease of a spectral one."
    return f"Not decided (gradient {nuclear.status}, input {activation.status})."


def _caveats(module: str, siblings: set[str]) -> list[str]:
    """What is known to mislead at this kind of block."""
    head, _, last = module.rpartition(".")
    caveats = []
    if last in ("lora_A", "lora_B"):
        caveats.append("Of a factor of rank r: its nuclear rank cannot exceed r.")
    if last == "down_proj" and f"{head}.gate_proj".lstrip(".") in siblings:
        caveats.append("Its input is gated: its stable rank grows with width and batch, so ask with your own batch.")
    return caveats


def _stream(place: Place, stable: dict[Place, GeometryRow]) -> GeometryRow | None:
    layer, module = place
    head, _, last = module.rpartition(".")
    if last not in OUTPUTS:
        return None
    return next((stable[layer, f"{head}.{name}"] for name in QUERIES if (layer, f"{head}.{name}") in stable), None)


def _embedding(model: nn.Module) -> tuple[str, nn.Embedding | None]:
    getter = getattr(model, "get_input_embeddings", None)
    module = None if getter is None else getter()
    names = [name for name, candidate in model.named_modules() if candidate is module]
    return (names[0], module) if isinstance(module, nn.Embedding) else ("", None)


def _heads(model: nn.Module) -> list[str]:
    getter = getattr(model, "get_output_embeddings", None)
    module = None if getter is None else getter()
    return [name for name, candidate in model.named_modules() if module is not None and candidate is module]


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"
