"""Masked batches of hidden states: the spectrum of every sequence, whatever it is padded or batched with.

Legend: B sequences, T token positions, D hidden size, L live tokens of one sequence, K = min(L, D).

Contract: hidden states ``(B, T, D)`` of any real dtype; a mask ``(B, T)`` of 0 and 1 in any dtype, 1 for a token that
counts, anywhere in the row; no mask counts every token. A sequence's result does not change by one bit with the
amount, side or content of its padding (NaN and inf included), nor with the sequences beside it; half-precision states
give what the same values give in fp64. To that end a sequence is cut to its live tokens, widened, and worked on alone:
one batched kernel for all would sum in an order that depends on the batch. No gradient. Deterministic for a fixed
device and thread count; needs a device with fp64 (CPU, CUDA).

Undefined, and NaN for that sequence only: no live token, all states zero, a live state that is not finite; centred, a
single token or tokens all alike. One token, uncentred, is exactly 1.

Numerics: fp64 throughout. No square of a narrower dtype's value over- or underflows there; fp64 states are first
divided by the power of two of their largest entry, which rounds nothing, so that both give the same bits.

- The stable rank reads ``trace(G) / lambda_1(G)`` from the smaller Gram matrix G, K by K. That is safe for the top of
  a spectrum only. With u = 2^-53 and n = max(L, D), the products move trace and lambda_1 by n u F^2 at most, and the
  eigenvalues by 100 K^2 u ||G||_F <= 100 K^2 u lambda_1 sqrt(st) (as in exact.py), so that the stable rank st is off
  by at most ::

      ( 2 n st + 100 K^2 sqrt(st) ) u    relative

  which is 7e-8 at worst for 512 by 1536; measured errors are below 1e-14. An fp32 Gram would halve the cost and give
  up nine of these digits.
- lambda_1 of a large G comes from power iteration where that is as good as LAPACK, and cheaper. For
  a unit v with theta = v'Gv and r = ||Gv - theta v||, every eigenvalue but one is at most mu = (||G||_F^2 -
  theta^2)^(1/2) once mu < theta, so that (Kato and Temple) lambda_1 lies in [theta, theta + r^2 / (theta - mu)]. Taken
  when mu is at most 0.9 theta and that interval no wider than u theta; else, or after `POWER_STEPS`, LAPACK decides.
- ``spectra_batched`` takes the values from the matrix: a Gram matrix loses those below sqrt(u) sigma_1.
- Centring subtracts the mean in fp64 before anything is squared. A spread of no more than L eps of the largest entry
  is rounding, and counts as zero.

Cost O(L D K) a sequence. `benchmarks/scorer_cost.py` holds it against the forward pass.

Source: arXiv 2512.02807, equation 1, which is uncentred; centring is an ablation.

Left out on purpose: iterative solvers, gradients, the choice of tokens (prompt, response, template: the mask's maker
decides), padded ``(B, K)`` spectra, whose zeros would count in the condition number and move last bits elsewhere.
"""

import math
from collections.abc import Iterator

import torch
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dsyevx
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
POWER_SIZE, POWER_STEPS = 96, 18
"""From this K power iteration is tried, for so many steps; below it LAPACK is about as fast."""


@torch.no_grad()
def stable_rank_batched(hidden_BTD: Tensor, mask_BT: Tensor | None = None, *, center: bool = False) -> Tensor:
    """The stable rank ``(B,)`` of every sequence, in fp64; NaN where undefined (module header).

    ``center`` subtracts each sequence's mean state first.

    Raises:
        ValueError: states not ``(B, T, D)``, a mask of another shape, or mask values other than 0 and 1.
    """
    is_wide = hidden_BTD.dtype == torch.float64
    rank_B = [_stable_rank(live_LD, center, is_wide) for live_LD in _live_states(hidden_BTD, mask_BT)]
    return torch.tensor(rank_B, dtype=torch.float64, device=hidden_BTD.device)


@torch.no_grad()
def spectra_batched(hidden_BTD: Tensor, mask_BT: Tensor | None = None, *, center: bool = False) -> list[Tensor]:
    """The singular values ``(K,)`` of every sequence, in fp64, descending: input of any functional of a spectrum.

    K differs between sequences, so that padding stays without trace: empty without a live token, NaN throughout where
    a live state is not finite. Arguments and errors as :func:`stable_rank_batched`.
    """
    is_wide = hidden_BTD.dtype == torch.float64
    return [_singular_values(live_LD, center, is_wide) for live_LD in _live_states(hidden_BTD, mask_BT)]


def _live_states(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Iterator[Tensor]:
    """The live tokens ``(L, D)`` of one sequence after the other, in fp64."""
    live_BT = _live_tokens(hidden_BTD, mask_BT)
    # One gather for the batch: a copy, row after row, whatever the layout of the batch.
    for live_LD in torch.split(hidden_BTD[live_BT], live_BT.sum(1).tolist()):
        yield live_LD.double()


def _live_tokens(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mask as booleans; an additive attention mask (0 and -inf) must not pass for one of 0 and 1."""
    if hidden_BTD.ndim != 3:
        raise ValueError(
            f"Hidden states must be (B, T, D), but the shape is {tuple(hidden_BTD.shape)}: "
            "add the missing dimension, hidden[None] for a single sequence."
        )
    if mask_BT is None:
        return torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=hidden_BTD.device)
    if mask_BT.shape != hidden_BTD.shape[:2]:
        raise ValueError(
            f"The mask must be (B, T) = {tuple(hidden_BTD.shape[:2])} like the hidden states, but its shape is "
            f"{tuple(mask_BT.shape)}: pass the attention mask of the same batch."
        )
    live_BT = mask_BT == 1
    if not bool((live_BT | (mask_BT == 0)).all()):
        raise ValueError(
            f"The mask must hold 0 and 1, but it also holds {mask_BT[~live_BT & (mask_BT != 0)][0].item()}: "
            "pass the attention mask of the tokenizer, not the additive one of the attention layers."
        )
    return live_BT.to(hidden_BTD.device)


def _in_range(live_LD: Tensor, center: bool, is_wide: bool) -> tuple[Tensor, float]:
    """The states, centred on demand, in a range whose squares are safe, and the power of two that was taken out."""
    if not (center or is_wide):
        return live_LD, 1.0
    largest = torch.linalg.vector_norm(live_LD, math.inf).item()
    scale = 2.0 ** (math.frexp(largest)[1] - 1) if is_wide and math.isfinite(largest) and largest > 0 else 1.0
    unit_LD = live_LD / scale if scale != 1 else live_LD
    if center:
        unit_LD = unit_LD - unit_LD.mean(0)
        unit_LD = unit_LD.masked_fill(unit_LD.abs().amax() <= len(unit_LD) * _EPS * (largest / scale), 0.0)
    return unit_LD, scale


def _stable_rank(live_LD: Tensor, center: bool, is_wide: bool) -> float:
    """``trace(G) / lambda_1(G)`` of the smaller Gram matrix; LAPACK refuses a matrix that is not finite."""
    if live_LD.numel() == 0:
        return math.nan
    unit_LD, _ = _in_range(live_LD, center, is_wide)
    rows, columns = unit_LD.shape
    gram_KK = unit_LD @ unit_LD.mT if rows <= columns else unit_LD.mT @ unit_LD
    trace = gram_KK.trace().item()
    if trace == 0 or not math.isfinite(trace):
        return math.nan
    return min(max(trace / _largest_eigenvalue(gram_KK), 1.0), float(len(gram_KK)))


def _largest_eigenvalue(gram_KK: Tensor) -> float:
    """lambda_1 of a positive semi-definite matrix that is not zero (module header)."""
    if len(gram_KK) >= POWER_SIZE:
        frobenius_sq = torch.linalg.vector_norm(gram_KK).item() ** 2
        vector_K = gram_KK[gram_KK.diagonal().argmax()]
        for _ in range(POWER_STEPS):
            vector_K = vector_K / torch.linalg.vector_norm(vector_K)
            image_K = gram_KK @ vector_K
            theta = (vector_K @ image_K).item()
            others = math.sqrt(max(frobenius_sq - theta**2, 0.0))
            residual_sq = torch.linalg.vector_norm(image_K - theta * vector_K).item() ** 2
            if others <= 0.9 * theta and residual_sq <= _EPS / 2 * theta * (theta - others):
                return theta
            vector_K = image_K
    size = len(gram_KK)
    # One value by bisection, where `eigvalsh` finds them all.
    values_K, _, _, _, info = dsyevx(gram_KK.cpu().numpy(), compute_v=0, range="I", il=size, iu=size)
    if info:
        raise LinAlgError(f"LAPACK's dsyevx found no largest eigenvalue of {size} x {size}: info = {info}")
    return float(values_K[0])


def _singular_values(live_LD: Tensor, center: bool, is_wide: bool) -> Tensor:
    if live_LD.numel() == 0:
        return live_LD.new_empty(0)
    unit_LD, scale = _in_range(live_LD, center, is_wide)
    tall = unit_LD if unit_LD.shape[0] >= unit_LD.shape[1] else unit_LD.mT  # LAPACK takes twice as long when wide
    if not bool(tall.isfinite().all()):
        return unit_LD.new_full((tall.shape[1],), torch.nan)
    return scale * torch.linalg.svdvals(tall)
