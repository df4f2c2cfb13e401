"""Metrics of one matrix by name, each with its certificate and its null.

Legend: O output features, I input features, K smaller side.

Three families, by what they cost. ``TOP`` comes from one certified run (spectral/certified.py). ``SPECTRUM`` needs
every singular value: cubic in K. ``PAIR`` compares an update with the weight that it changed: ``relative_norm`` and the
two of storage cost a pass, ``low_magnitude_overlap`` a few, the others a decomposition of the base.

Head energies and angles are taken for the leading k directions of the base, k the rank of a factored update and 16
otherwise; intruders among the leading 10 with cosine below 0.5 (METHODS.md 9.4). Overlaps are of the entries that
moved in bf16 with the half that is largest in the base's rank-64 reconstruction, and the half that is smallest in the
base itself (METHODS.md 9.10).

Nulls follow the structure of the matrix: Gaussian factors of the same rank, or a Gaussian matrix. Norms, the condition
number, the numerical rank and the tail exponent have none; nor have ``sparsity`` and ``representable_fraction``, which
describe storage.

Left out on purpose: other settings of the masks and subspaces than these; call spectral/ for them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stablerank.errors import StablerankError
from stablerank.spectral.certified import Top, top_of_spectrum
from stablerank.spectral.exact import Estimate, Spectra, Status, undefined
from stablerank.spectral.gram import full_spectrum
from stablerank.spectral.intruders import intruder_cosines, intruder_counts, intruder_null, intruder_update_null
from stablerank.spectral.nss import nss, nss_bound, nss_null
from stablerank.spectral.nulls import NO_NULL, Null, dense_null, factored_null
from stablerank.spectral.operators import Dense, Difference, Factored, row_blocks
from stablerank.spectral.representable import representable_fraction
from stablerank.spectral.sparsity import update_mask, update_sparsity
from stablerank.spectral.spectrum_metrics import SPECTRUM_METRICS, spectrum_metric
from stablerank.spectral.spectrum_nulls import RANKS, spectrum_null
from stablerank.spectral.subspace_nulls import head_energy_null, head_energy_two_sided_null, principal_angle_null
from stablerank.spectral.subspaces import (
    Subspaces,
    head_energy,
    head_energy_two_sided,
    principal_angles,
    singular_subspaces,
)
from stablerank.spectral.update_masks import low_magnitude_mask, mask_overlap, mask_overlap_null, principal_mask

TOP = ("stable_rank", "frobenius", "spectral_norm")
SPECTRUM = tuple(SPECTRUM_METRICS)
DEFAULT_PAIR = ("relative_norm", "sparsity", "representable_fraction")
SUBSPACE_PAIR = ("nss", "head_energy", "head_energy_two_sided", "principal_angle", "intruder_dimensions")
OVERLAPS = ("principal_overlap", "low_magnitude_overlap")
PAIR = (*DEFAULT_PAIR, *SUBSPACE_PAIR, *OVERLAPS)
STORED_PAIR = ("sparsity", "representable_fraction", *OVERLAPS)
"""These describe two stored tensors: an adapter's factors have no use for them."""
METRICS = (*TOP, *SPECTRUM, *PAIR)

HEAD = 16
INTRUDERS, INTRUDER_COSINE = 10, 0.5
MASK_RANK, MASK_SHARE = 64, 0.5


@dataclass(frozen=True)
class Reading:
    """One metric of one matrix."""

    metric: str
    estimate: Estimate
    null: Null


@dataclass(frozen=True, eq=False)
class Subject:
    """A matrix to be measured; an update may know the weight it changed."""

    operator: Dense | Difference | Factored
    base_OI: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Inner rank of a factored update; None for anything stored whole."""
        return self.operator.b_OR.shape[1] if isinstance(self.operator, Factored) else None

    @cached_property
    def head(self) -> int:
        """How many leading directions of the base a subspace metric takes."""
        return min(self.rank or HEAD, *self.operator.shape)

    @cached_property
    def base_norm(self) -> float:
        """Frobenius norm of the base."""
        return frobenius_norm(self._base())

    @cached_property
    def base_subspaces(self) -> Subspaces:
        """All left singular vectors of the base that belong to a singular value, and the right ones."""
        return singular_subspaces(self._base(), min(self.operator.shape))

    @cached_property
    def trained_subspaces(self) -> Subspaces:
        """As many leading singular vectors of the trained weight as any metric needs."""
        return singular_subspaces(self._trained(), min(max(self.head, INTRUDERS), *self.operator.shape))

    @cached_property
    def spectrum(self) -> Spectra:
        """Every singular value of the matrix itself."""
        return full_spectrum(self.operator)

    def spectra_before_and_after(self) -> tuple[Tensor, Tensor]:
        """Singular values of the base and of the trained weight, from the matrices in fp64."""
        before, after = full_spectrum(Dense(self._base())), full_spectrum(Dense(self._trained()))
        return before.values_NK[0], after.values_NK[0]

    def _base(self) -> Tensor:
        if self.base_OI is None:
            raise ValueError("This metric compares an update with its base, but the subject has none: give base_OI.")
        return self.base_OI

    def _trained(self) -> Tensor:
        if isinstance(self.operator, Difference):
            return self.operator.after_OI
        update = self.operator
        if isinstance(update, Factored):
            return self._base().double() + update.scale * (update.b_OR.double() @ update.a_RI.double())
        return self._base().double() + update.materialised()


def check_metrics(names: Iterable[str], *, update: bool, base: bool, stored: bool) -> tuple[str, ...]:
    """The metrics asked for, without repeats.

    Args:
        names: metric names.
        update: whether an update is measured rather than a weight.
        base: whether the weight that it changed is at hand.
        stored: whether both are stored tensors.

    Raises:
        StablerankError: an unknown name, or a metric that this input cannot have.
    """
    chosen = tuple(dict.fromkeys(names))
    if not chosen:
        raise StablerankError(f"No metric is named: choose from {', '.join(METRICS)}.")
    for name in chosen:
        if name not in METRICS:
            raise StablerankError(f"There is no metric {name!r}: choose from {', '.join(METRICS)}.")
        if name in STORED_PAIR and not stored:
            raise StablerankError(f"The metric {name} compares two stored checkpoints, not an adapter: leave it out.")
        if name in PAIR and not (update and base):
            raise StablerankError(f"The metric {name} compares an update with its base: give the base with --against.")
    return chosen


def check_accuracy(rtol: float, delta: float) -> None:
    """Ask the solver whether it takes this accuracy, before anything is read.

    Raises:
        StablerankError: ``rtol`` or ``delta`` outside their range.
    """
    try:
        top_of_spectrum(Dense(torch.ones(1, 1)), rtol=rtol, delta=delta)
    except ValueError as error:
        raise StablerankError(str(error)) from error


def read(subject: Subject, metrics: Iterable[str], *, rtol: float, delta: float) -> list[Reading]:
    """The metrics of one matrix, in the order asked for; an undefined one has value NaN and a status that says why."""
    top = top_of_spectrum(subject.operator, rtol=rtol, delta=delta)
    return [_reading(subject, top, metric) for metric in metrics]


def _reading(subject: Subject, top: Top, metric: str) -> Reading:
    shape = subject.operator.shape
    if metric == "stable_rank":
        return Reading(metric, top.stable_rank(), structure_null(shape, subject.rank))
    if metric in TOP:
        return Reading(metric, top.frobenius_norm() if metric == "frobenius" else top.spectral_norm(), NO_NULL)
    if metric == "relative_norm":
        return Reading(metric, relative_norm(top.frobenius_norm(), subject.base_norm, shape), NO_NULL)
    if top.status in ("zero", "non_finite", "empty"):
        return Reading(metric, undefined(top.status, top.passes), NO_NULL)
    if metric in SPECTRUM_METRICS:
        has_null = metric in RANKS or metric == "spectral_entropy"
        null = spectrum_null(metric, *shape, subject.rank) if has_null else NO_NULL
        return Reading(metric, spectrum_metric(metric, subject.spectrum), null)
    if metric not in STORED_PAIR and not 0 < subject.base_norm < math.inf:
        return Reading(metric, undefined(_base_status(subject.base_norm)), NO_NULL)
    value, null = _PAIR_READERS[metric](subject)
    return Reading(metric, estimated(value), null)


def structure_null(shape: tuple[int, int], rank: int | None) -> Null:
    """The null of the stable rank for a Gaussian matrix, or for Gaussian factors of ``rank``."""
    if min(shape) == 0:
        return NO_NULL
    return dense_null(*shape) if rank is None else factored_null(*shape, rank)


def frobenius_norm(matrix_OI: Tensor) -> float:
    """In fp64, from blocks, so that no copy of the matrix is made; NaN or infinite where an entry is."""
    norms = [torch.linalg.vector_norm(block, dtype=torch.float64).item() for _, block in row_blocks(Dense(matrix_OI))]
    return math.hypot(*norms)


def relative_norm(update: Estimate, base_norm: float, shape: tuple[int, int]) -> Estimate:
    """``||dW||_F / ||W||_F`` from both norms. Defined, and 0, for an update of zero; not for a base of zero."""
    error = math.prod(shape) * 2.0**-53
    if math.isnan(update.value):
        return undefined(update.status)
    if not 0 < base_norm < math.inf:
        return undefined(_base_status(base_norm))
    lower, upper = update.lower / (base_norm * (1 + error)), update.upper / (base_norm * (1 - error))
    return Estimate(update.value / base_norm, lower, upper, 1, "exact")


def estimated(value: float) -> Estimate:
    """A value without a bound; NaN is refused."""
    return undefined("refused") if math.isnan(value) else Estimate(value, math.nan, math.nan, 1, "estimated")


def _base_status(base_norm: float) -> Status:
    """Why a metric relative to the base is not defined, where its norm is no positive number."""
    return "refused" if base_norm == 0 else "non_finite"


def _nss(subject: Subject) -> tuple[float, Null]:
    before_K, after_K = subject.spectra_before_and_after()
    relative = nss_bound(subject.operator, before_K)
    return nss(after_K, before_K), nss_null(before_K, subject.operator.shape, relative, rank=subject.rank)


def _head_energy(subject: Subject) -> tuple[float, Null]:
    v_IK = subject.base_subspaces.v_IK[:, : subject.head]
    null = head_energy_null(*subject.operator.shape, subject.head, rank=subject.rank)
    return head_energy(subject.operator, v_IK), null


def _head_energy_two_sided(subject: Subject) -> tuple[float, Null]:
    base, k = subject.base_subspaces, subject.head
    null = head_energy_two_sided_null(*subject.operator.shape, k, rank=subject.rank)
    return head_energy_two_sided(subject.operator, base.u_OK[:, :k], base.v_IK[:, :k]), null


def _principal_angle(subject: Subject) -> tuple[float, Null]:
    k = subject.head
    angles = principal_angles(subject.base_subspaces.u_OK[:, :k], subject.trained_subspaces.u_OK[:, :k])
    return angles.max().item(), principal_angle_null(subject.operator.shape[0], k)


def _intruder_dimensions(subject: Subject) -> tuple[float, Null]:
    """An adapter's floor is a random update of its rank and norm; a dense update has only the ceiling."""
    shape = subject.operator.shape
    k = min(INTRUDERS, *shape)
    cosines_K = intruder_cosines(subject.trained_subspaces.u_OK[:, :k], subject.base_subspaces.u_OK)
    if subject.rank is None:
        null = intruder_null(*shape, k=k, epsilon=INTRUDER_COSINE)
    else:
        values_S = subject.base_subspaces.values_K
        relative = nss_bound(subject.operator, values_S)
        null = intruder_update_null(values_S, shape, relative, subject.rank, k=k, epsilon=INTRUDER_COSINE)
    return intruder_counts(cosines_K, (k,), (INTRUDER_COSINE,)).item(), null


def _stored(subject: Subject) -> Difference:
    if not isinstance(subject.operator, Difference):
        raise ValueError("This metric compares two stored tensors, but the update is factored: leave the metric out.")
    return subject.operator


def _sparsity(subject: Subject) -> tuple[float, Null]:
    pair = _stored(subject)
    return update_sparsity(pair.after_OI, pair.before_OI), NO_NULL


def _representable(subject: Subject) -> tuple[float, Null]:
    pair = _stored(subject)
    return representable_fraction(pair.after_OI, pair.before_OI).fraction, NO_NULL


def _principal_overlap(subject: Subject) -> tuple[float, Null]:
    pair = _stored(subject)
    return _overlap(pair, principal_mask(pair.before_OI, min(MASK_RANK, *pair.shape), MASK_SHARE))


def _low_magnitude_overlap(subject: Subject) -> tuple[float, Null]:
    pair = _stored(subject)
    return _overlap(pair, low_magnitude_mask(pair.before_OI, MASK_SHARE))


def _overlap(pair: Difference, reference: Tensor) -> tuple[float, Null]:
    moved = update_mask(pair.after_OI, pair.before_OI)
    return mask_overlap(moved, reference), mask_overlap_null(moved, reference)


_PAIR_READERS: dict[str, Callable[[Subject], tuple[float, Null]]] = {
    "nss": _nss,
    "head_energy": _head_energy,
    "head_energy_two_sided": _head_energy_two_sided,
    "principal_angle": _principal_angle,
    "intruder_dimensions": _intruder_dimensions,
    "sparsity": _sparsity,
    "representable_fraction": _representable,
    "principal_overlap": _principal_overlap,
    "low_magnitude_overlap": _low_magnitude_overlap,
}
