"""Which tokens own the leading direction of a text's hidden states.

Legend: B rows of a chunk, L tokens of prompt and completion, D hidden size.

With v the leading right singular vector of the states H, a row a token, token t holds ``(h_t v)^2 / sigma_1^2`` of the
energy that divides a stable rank. One token can hold nearly all of it (an attention sink, the beginning of a text), and
then the rank says how that token stands beside the rest, and little of the response.

Numerics: power iteration on ``H^T H`` in fp32, all rows at once, from the state of the largest norm; the share is that
of the direction found. An error of the start shrinks by ``(sigma_2 / sigma_1)^2`` an iteration, so `ITERATIONS` leave
less than 1e-7 of it where the stable rank is below 1.5; where the two leading values are alike, neither direction is
the leading one, and the share is of a mixture of both. This is a monitor and no reward. Cost ``4 B L D`` an iteration,
on the device of the pass.

Left out on purpose: centred states, whose leading values lie too close for so few iterations; other directions;
certificates (spectral/certified.py has them).
"""

import torch
from torch import Tensor

ITERATIONS = 24


def leading_energy(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The share of every token in the energy of the leading direction, ``(B, L)`` fp32, 0 where the mask is false.

    Rows sum to 1; they are NaN without a token that counts, and where all states that count are zero.
    """
    states_BLD = hidden_BLD.masked_fill(~mask_BL[..., None], 0).float()
    largest_B = states_BLD.norm(dim=2).argmax(1)
    direction_BD1 = states_BLD[torch.arange(len(states_BLD), device=largest_B.device), largest_B, :, None]
    for _ in range(ITERATIONS):
        direction_BD1 = states_BLD.mT @ (states_BLD @ _unit(direction_BD1))
    energy_BL = (states_BLD @ _unit(direction_BD1))[..., 0].square()
    return energy_BL / energy_BL.sum(1, keepdim=True)


def _unit(direction_BD1: Tensor) -> Tensor:
    return direction_BD1 / direction_BD1.norm(dim=1, keepdim=True)


def share_of(energy_BL: Tensor, chosen_BL: Tensor) -> Tensor:
    """What the chosen tokens hold together, ``(B,)`` float64; NaN for a row of NaN."""
    return (energy_BL * chosen_BL).double().sum(1)
