"""The stable rank of one matrix to a requested accuracy, certified, in a few passes.

Contract: ``top_of_spectrum(operator, rtol)`` returns the Frobenius norm and an interval for sigma_1 such that the
stable rank read from it is within ``rtol`` of the truth, relative. The lower end of sigma_1 (a Ritz value less its
rounding) always holds; the upper end holds but for probability ``delta`` over the solver's own random start
(certificate.py). The value is taken at the Ritz value, so an iterative answer errs upward, by at most ``rtol``.

Routes, cheapest first:

- factored: the exact core (exact.py);
- shorter side up to 96, or entries whose squares leave the range of fp32: exact, in fp64;
- block Lanczos until the certificate closes;
- it does not close within K / 2 or 1024 basis vectors: the fp64 Gram matrix where K <= 8192 (gram.py); beyond that
  status ``open``, with the interval that was shown.

Legend: K shorter side, B block width.

Numerics: F^2 from norms of 256 entries in the dtype of the blocks, squared and summed in fp64: relative error at most
260 u. Cost: one pass for F^2 and one a Lanczos step, 3 to 15 steps on weights of language models at rtol 1e-3.
Deterministic for a fixed seed, device and thread count.

Left out on purpose: singular vectors; several matrices in lockstep (they close after different numbers of steps).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.spectral.certificate import least_overlap, rounding_allowance, shortfall
from stablerank.spectral.exact import Estimate, Spectra, Status, frobenius_estimates, spectrum, undefined
from stablerank.spectral.gram import gram_matrix
from stablerank.spectral.lanczos import BlockLanczos, random_start
from stablerank.spectral.operators import BLOCK_ENTRIES, Dense, Factored, Stored, row_blocks

RTOL, DELTA = 1e-3, 1e-6
WIDTH = 8
"""Vectors a block: fewer make epsilon too small beside fp32 rounding, more cost time without saving passes."""
SMALL_SIDE = 96
LARGEST_GRAM = 8192
_MOST_VECTORS = 1024
_WORKING_COPY = 8 * BLOCK_ENTRIES
"""Matrices up to this many entries (16 MiB in fp32) are converted once and kept for all passes."""
_CHUNK = 256
_SAFE_NORM = (1e-10, 1e15)
"""Frobenius norms between these lose nothing to fp32 squares that over- or underflow."""


@dataclass(frozen=True)
class Top:
    """Frobenius norm and largest singular value of one matrix, each with its interval."""

    status: Status
    shorter_side: int = 0
    frobenius: float = math.nan
    frobenius_error: float = 0.0
    """Relative."""
    sigma: float = math.nan
    sigma_low: float = math.nan
    sigma_high: float = math.nan
    passes: int = 0

    def stable_rank(self) -> Estimate:
        """``(F / sigma_1)^2`` and its interval, inside ``[1, K]``."""
        if math.isnan(self.sigma):
            return undefined(self.status, self.passes)
        low, high = self.frobenius * (1 - self.frobenius_error), self.frobenius * (1 + self.frobenius_error)
        lower, value = (low / self.sigma_high) ** 2, (self.frobenius / self.sigma) ** 2
        upper = min((high / self.sigma_low) ** 2, self.shorter_side) if self.sigma_low > 0 else self.shorter_side
        return Estimate(max(value, 1.0), max(lower, 1.0), max(upper, 1.0), self.passes, self.status)

    def spectral_norm(self) -> Estimate:
        """``sigma_1``; exactly 0 for the zero matrix."""
        if self.status == "zero":
            return Estimate(0.0, 0.0, self.sigma_high, self.passes, "exact")
        if math.isnan(self.sigma):
            return undefined(self.status, self.passes)
        return Estimate(self.sigma, self.sigma_low, self.sigma_high, self.passes, self.status)

    def frobenius_norm(self) -> Estimate:
        """``F``; exactly 0 for the zero matrix."""
        if not math.isfinite(self.frobenius):
            return undefined(self.status, self.passes)
        if self.status == "zero":
            return Estimate(self.frobenius, 0.0, self.sigma_high, self.passes, "exact")
        error = self.frobenius * self.frobenius_error
        return Estimate(self.frobenius, self.frobenius - error, self.frobenius + error, self.passes, "exact")


def stable_rank_certified(operator: Stored | Factored, *, rtol: float = RTOL, delta: float = DELTA) -> Estimate:
    """The stable rank within ``rtol``, relative, but for probability ``delta``; see the module header."""
    return top_of_spectrum(operator, rtol=rtol, delta=delta).stable_rank()


@torch.no_grad()
def top_of_spectrum(
    operator: Stored | Factored, *, rtol: float = RTOL, delta: float = DELTA, width: int = WIDTH, seed: int = 0
) -> Top:
    """Frobenius norm and sigma_1 of one matrix, by the cheapest route that certifies ``rtol``.

    Args:
        operator: the matrix; it is read, never changed.
        rtol: largest relative error of the stable rank, above 1e-4 (below that the rounding of fp32 products shows).
        delta: probability that the upper end of sigma_1 fails.
        width: block width of the Lanczos run.
        seed: of the random start; the start must not depend on the matrix.

    Raises:
        ValueError: ``rtol`` or ``delta`` outside their range.
    """
    _require_range("rtol", rtol, 1e-4, 1.0)
    _require_range("delta", delta, 1e-12, 0.5)
    if isinstance(operator, Factored):
        return _from_spectra(spectrum(operator), "exact")
    shorter = min(operator.shape)
    if shorter == 0:
        return Top("empty")
    converted = _working_copy(operator)
    norm, error = _frobenius(converted)
    if not _SAFE_NORM[0] <= norm <= _SAFE_NORM[1]:
        return _extreme(operator)
    if shorter <= max(SMALL_SIDE, 4 * width):
        return _from_gram(operator, passes=2)
    converted = _upright(converted)
    run = BlockLanczos(converted, _start(converted, width, seed), _capacity(shorter, width))
    certificate = _Certificate(run, delta, operator.entry_rounding * norm)
    top = _by_lanczos(certificate, norm, error + operator.entry_rounding, rtol)
    if top.status == "open" and shorter <= LARGEST_GRAM:
        return _from_gram(operator, passes=top.passes + 1)
    return top


class _Certificate:
    """What a Lanczos run shows about sigma_1; ``perturbation`` is how far its matrix may be from the true one."""

    def __init__(self, run: BlockLanczos, delta: float, perturbation: float) -> None:
        self.run, self.perturbation = run, perturbation
        width, size = run.start_BK.shape
        self.epsilon = least_overlap(width, size, delta)
        self.allowance = rounding_allowance(run.operator.shape, run.start_BK.dtype)

    def look(self) -> None:
        """Take T, its largest eigenvalue theta, and eta as the run stands."""
        self.tridiagonal_NN, defect = self.run.tridiagonal()
        self.theta = torch.linalg.eigvalsh(self.tridiagonal_NN)[-1].item()
        self.eta = max(self.allowance * self.theta, 8 * defect) + 2 * self.perturbation * math.sqrt(self.theta)

    def missing(self, x: float) -> float:
        """Below 1: ``lambda_1 < x`` is shown."""
        return shortfall(x, self.run, self.tridiagonal_NN, epsilon=self.epsilon, eta=self.eta)

    def least_shown(self, ceiling: float) -> float:
        """The least x on a geometric grid between theta and ``ceiling`` that is shown to exceed lambda_1."""
        x, excess = self.theta, 1e-3 * self.theta
        while x < ceiling:
            x, excess = x + excess, 1.5 * excess
            if self.missing(x) < 1:
                return x
        return ceiling


def _by_lanczos(certificate: _Certificate, norm: float, error: float, rtol: float) -> Top:
    """Lanczos steps until sigma_1 is certified; status ``open`` where that does not happen."""
    run = certificate.run
    pace = _Pace(due=3 if math.prod(run.operator.shape) > _WORKING_COPY else 5)
    # F^2 and sigma_1^2 share rtol.
    widening = (1 + rtol) * (1 - error) ** 2
    while run.steps < run.capacity:
        run.step()
        if run.steps < min(pace.due, run.capacity):
            continue
        certificate.look()
        missing = certificate.missing(certificate.theta * widening)
        if missing < 1:
            return _lanczos_top("certified", certificate, norm, error, certificate.theta * widening)
        pace.observe(run.steps, missing)
    return _lanczos_top("open", certificate, norm, error, certificate.least_shown((norm / (1 - error)) ** 2))


@dataclass
class _Pace:
    """When to look at the certificate: a look costs as much as a pass over a small matrix."""

    due: int
    last: tuple[int, float] | None = None

    def observe(self, steps: int, missing: float) -> None:
        """The shortfall falls geometrically: look next where its last slope foretells 1."""
        ahead = 1
        if self.last is not None and missing < self.last[1]:
            slope = (math.log(self.last[1]) - math.log(missing)) / (steps - self.last[0])
            ahead = max(1, int(math.log(missing) / slope))
        self.last, self.due = (steps, missing), steps + ahead


def _lanczos_top(status: Status, certificate: _Certificate, norm: float, error: float, above: float) -> Top:
    run = certificate.run
    rows, columns = run.operator.shape
    passes = 1 + run.steps * (1 if rows >= columns else 2)
    return _top(status, (rows, columns), (norm, error), certificate.theta, certificate.eta, above, passes)


def _top(
    status: Status,
    shape: tuple[int, int],
    frobenius: tuple[float, float],
    theta: float,
    eta: float,
    above: float,
    passes: int,
) -> Top:
    low, value, high = (math.sqrt(max(x, 0.0)) for x in (theta - eta, theta, above))
    return Top(status, min(shape), *frobenius, value, low, high, passes)


def _start(operator: Stored, width: int, seed: int) -> Tensor:
    return random_start(width, min(operator.shape), seed=seed, like=operator.rows(slice(0, 1)))


def _capacity(shorter: int, width: int) -> int:
    return min(shorter // (2 * width), _MOST_VECTORS // width)


def _from_gram(operator: Stored, passes: int) -> Top:
    """Exact: lambda_1 of the fp64 Gram matrix is good to rounding whatever the condition number."""
    gram_KK, error = gram_matrix(operator)
    theta, norm_sq = torch.linalg.eigvalsh(gram_KK)[-1].item(), gram_KK.trace().item()
    frobenius = math.sqrt(norm_sq), error / norm_sq
    return _top("exact", operator.shape, frobenius, theta, error, theta + error, passes)


def _extreme(operator: Stored) -> Top:
    """Zero, not finite, or too large or small for fp32 squares: exact in fp64, whose range holds all of them."""
    entries = operator.materialised()
    if not entries.isfinite().all():
        return Top("non_finite", min(operator.shape), passes=2)
    if not entries.any():
        # An unchanged weight is common, and its SVD slow.
        return Top("zero", min(operator.shape), 0.0, sigma_high=0.0, passes=2)
    return _from_spectra(spectrum(Dense(entries)), "exact")


def _from_spectra(spectra: Spectra, status: Status) -> Top:
    values_K, error = spectra.values_NK[0], spectra.error_N[0].item()
    if len(values_K) == 0:
        return Top("empty")
    norm, sigma = frobenius_estimates(spectra)[0].value, values_K[0].item()
    if not math.isfinite(sigma):
        return Top("non_finite", len(values_K), passes=1)
    if sigma <= error or sigma == 0:
        # What cannot be told from zero: both norms lie below this.
        return Top("zero", len(values_K), norm, sigma_high=norm + error, passes=1)
    return Top(status, len(values_K), norm, error / norm, sigma, max(sigma - error, 0.0), sigma + error, 1)


def _working_copy(operator: Stored) -> Stored:
    """A small matrix is converted once; a large one block by block in every pass, so that memory stays bounded."""
    if math.prod(operator.shape) > _WORKING_COPY:
        return operator
    return Dense(operator.rows(slice(None)))


def _upright(operator: Stored) -> Stored:
    """A wide matrix that needs no conversion is turned, so that a step reads it once."""
    rows, columns = operator.shape
    is_view = isinstance(operator, Dense) and operator.matrix_OI.dtype in (torch.float32, torch.float64)
    return operator.mT if rows < columns and is_view else operator


def _frobenius(operator: Stored) -> tuple[float, float]:
    """F and the relative error of F: norms of chunks of 256 entries, then fp64."""
    total, unit = 0.0, 0.0
    for _, block in row_blocks(operator):
        unit, entries = torch.finfo(block.dtype).eps / 2, block.reshape(-1)
        whole = len(entries) // _CHUNK * _CHUNK
        norms = torch.linalg.vector_norm(entries[:whole].view(-1, _CHUNK), dim=1)
        total += norms.double().square().sum().item() + torch.linalg.vector_norm(entries[whole:]).item() ** 2
    return math.sqrt(total), (_CHUNK + 4) * unit


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is {value}, but it must lie in [{low}, {high}): choose a value inside.")
