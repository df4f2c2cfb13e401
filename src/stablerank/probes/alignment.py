"""Where an update lies relative to the weight it changes, cheaply enough to be asked along a whole run.

Legend: O output features, I input features, K directions, R rank.

Contract: the head of a base, its K leading left and right singular vectors, is computed once. Each reading then costs
one product with the update. K is the same for every matrix and method (16, the usual adapter rank), so that methods
can be compared; the energies of a random update on it are the null (subspace_nulls.py), with Gaussian factors of the
update's own rank, 2 R for a frozen difference, or a Gaussian matrix.

``relative_norm`` is ``||dW||_F / ||W||_F``; ``head_energy`` and ``head_energy_two_sided`` are S_Head in its two
readings; ``alignment_k`` is ``s_k^2``, one row a direction, because a summary could not be undone: the rows sum to the
head energy, and which directions carry it is the question. Head metrics of an update of zero are not defined.

Numerics: heads by an exact decomposition (subspaces.py), O(O I S + S^3) a matrix with S the smaller side, kept on the
CPU in fp32: (O + I) K numbers a matrix. Readings in fp64. At a small gap between singular values of the base the
directions around it are arbitrary, and so are single ``alignment_k``.

Source: METHODS.md 2.4.

Left out on purpose: the NSS, which needs both whole spectra (evaluate.py reads it); angles and intruders.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.evaluate import HEAD, Reading, estimated, frobenius_norm, relative_norm
from stablerank.spectral.alignment import alignment
from stablerank.spectral.exact import Estimate, undefined
from stablerank.spectral.nulls import NO_NULL, Null
from stablerank.spectral.operators import Dense, Difference, Factored
from stablerank.spectral.subspace_nulls import head_energy_null, head_energy_two_sided_null
from stablerank.spectral.subspaces import singular_subspaces


@dataclass(frozen=True, eq=False)
class BaseHead:
    """What is kept of a base weight: its leading singular vectors and its norm."""

    u_OK: Tensor
    v_IK: Tensor
    norm: float

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, I)`` of the weight."""
        return len(self.u_OK), len(self.v_IK)


def base_head(weight_OI: Tensor, k: int = HEAD) -> BaseHead:
    """The head of a weight: ``k`` directions, or as many as it has."""
    found = singular_subspaces(weight_OI, min(k, *weight_OI.shape))
    return BaseHead(found.u_OK.float().cpu(), found.v_IK.float().cpu(), frobenius_norm(weight_OI))


def head_readings(
    name: str, operator: Dense | Difference | Factored, rank: Estimate, norm: Estimate, head: BaseHead
) -> list[Reading]:
    """Every metric of one update against the head of its base.

    Args:
        name: of the matrix, for the error.
        operator: the update.
        rank: its stable rank, whose status says whether there is an update at all.
        norm: its Frobenius norm.
        head: of the weight that it changes.

    Raises:
        ModelError: the head belongs to a weight of another shape.
    """
    if head.shape != operator.shape:
        raise ModelError(
            f"{name} has an update of shape {operator.shape}, but its base weight is {head.shape}: take the base that "
            "this model was trained from."
        )
    shares = {} if math.isnan(rank.value) else _shares(operator, head)
    nulls = _nulls(operator, head.u_OK.shape[1])
    readings = [Reading("relative_norm", relative_norm(norm, head.norm, operator.shape), NO_NULL)]
    for metric, null in nulls.items():
        estimate = estimated(shares[metric]) if shares else undefined(rank.status, rank.passes)
        readings.append(Reading(metric, estimate, null))
    return readings


def _shares(operator: Dense | Difference | Factored, head: BaseHead) -> dict[str, float]:
    device = _device(operator)
    found = alignment(operator, head.u_OK.to(device), head.v_IK.to(device))
    profile = {f"alignment_{k}": value for k, value in enumerate(found.squares_K.tolist(), start=1)}
    return {"head_energy": found.one_sided, "head_energy_two_sided": found.two_sided, **profile}


def _nulls(operator: Dense | Difference | Factored, k: int) -> dict[str, Null]:
    inner = operator.b_OR.shape[1] if isinstance(operator, Factored) else None
    single = head_energy_null(*operator.shape, 1, rank=inner)
    return {
        "head_energy": head_energy_null(*operator.shape, k, rank=inner),
        "head_energy_two_sided": head_energy_two_sided_null(*operator.shape, k, rank=inner),
        **{f"alignment_{direction}": single for direction in range(1, k + 1)},
    }


def _device(operator: Dense | Difference | Factored) -> torch.device:
    if isinstance(operator, Factored):
        return operator.b_OR.device
    return operator.after_OI.device if isinstance(operator, Difference) else operator.matrix_OI.device
