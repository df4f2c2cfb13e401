"""How much of the best rank-R energy a subspace captures: measured, and bounded from above.

Legend: O output features, I input features, R dimensions, Q basis of what the subspace couples to.

Statement. V has R orthonormal columns, ``M = W^T W``. The captured energy is ``tr Theta``, ``Theta = V^T M V``. In the
basis ``[V, Q, rest]``, Q an orthonormal basis of ``M V - V Theta = Q L``, and with mu an upper bound of the largest
eigenvalue of M on the complement of V, M lies below ::

    [ Theta  L^T  ]
    [ L      mu 1 ]     and mu 1 on the rest

in the semidefinite order, so the R largest eigenvalues of this 2R-by-2R matrix (at least R of all its eigenvalues are
mu or more) sum to at least ``sigma_1^2 + ... + sigma_R^2`` of W. The excess is of second order in L where Theta and mu
are apart, and of first order in ``mu - sigma_{R+1}^2`` where the spectrum is flat.

What is probabilistic: mu alone. It is the upper end of sigma_1 of ``W - W V V^T``, from the certified Lanczos run of
certified.py with a random start of its own: it fails with probability at most ``delta``. All else always holds.

Numerics: fp64; rounding, some 1e-13 of the total energy, is covered by 1e-10. Memory: two fp64 copies of the matrix.
Cost: the Lanczos run on the deflated matrix, whose spectrum is flat: as long as the exact triplets at K = 576, half of
that at K = 2048, several times the factorisation that it checks; therefore on request only. On SmolLM2's weights the
bound is two to five times the true loss at rtol 2e-3, and 1e-3 above it at 1e-2.

Source: Ky Fan's maximum principle; Parlett, The Symmetric Eigenvalue Problem, section 10.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.spectral.certified import DELTA, top_of_spectrum
from stablerank.spectral.operators import Dense


@dataclass(frozen=True)
class SubspaceEnergy:
    """Energies ``sum sigma^2``: what a subspace captures, and what the best of its dimension can at most."""

    captured: float
    best_at_most: float
    total: float

    @property
    def missed_at_most(self) -> float:
        """Upper bound on ``1 - captured / best``; 0 for the zero matrix."""
        return 1 - self.captured / self.best_at_most if self.best_at_most > 0 else 0.0


@torch.no_grad()
def subspace_energy(weight_OI: Tensor, v_IR: Tensor, *, rtol: float = 1e-2, delta: float = DELTA) -> SubspaceEnergy:
    """Measure the energy ``||W V||_F^2`` and bound that of the best subspace of its dimension.

    Args:
        weight_OI: finite entries.
        v_IR: independent columns; they are orthonormalised in fp64.
        rtol: accuracy of mu: on a flat spectrum the bound cannot be closer; 1e-4 to 1.
        delta: probability that the upper bound fails.

    Raises:
        ValueError: ``v_IR`` does not have I rows and at most I columns.
    """
    if v_IR.ndim != 2 or v_IR.shape[0] != weight_OI.shape[1] or not 1 <= v_IR.shape[1] <= v_IR.shape[0]:
        raise ValueError(
            f"The energy of a subspace of a weight {tuple(weight_OI.shape)} needs a basis of "
            f"({weight_OI.shape[1]}, R), but it is {tuple(v_IR.shape)}: take right singular vectors of that weight."
        )
    weight_OI, v_IR = weight_OI.double(), torch.linalg.qr(v_IR.double()).Q
    image_OR = weight_OI @ v_IR
    theta_RR = image_OR.mT @ image_OR
    total, captured = weight_OI.square().sum().item(), theta_RR.trace().item()
    coupling_RR = torch.linalg.qr(weight_OI.mT @ image_OR - v_IR @ theta_RR).R
    sigma = top_of_spectrum(Dense(weight_OI - image_OR @ v_IR.mT), rtol=rtol, delta=delta).spectral_norm().upper
    rest_RR = sigma**2 * torch.eye(len(coupling_RR), dtype=torch.float64, device=weight_OI.device)
    above = torch.cat((torch.cat((theta_RR, coupling_RR.mT), 1), torch.cat((coupling_RR, rest_RR), 1)))
    best = torch.linalg.eigvalsh(above)[-v_IR.shape[1] :].sum().item() + 1e-10 * total
    return SubspaceEnergy(captured, min(best, total), total)
