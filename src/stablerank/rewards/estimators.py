"""One-sample terms for the KL divergence of a policy from its reference, as a loss can add them to every token.

With ``d = log p - log q`` of the sampled token, p the policy and q the reference (J. Schulman, "Approximating KL
divergence", 2020; S4 is gernim/lora-reward-density, ``grpo.py``):

======  ========================  ===================================  =========================================
term    value                     mean over p                          gradient of its mean, as a loss
======  ========================  ===================================  =========================================
``k1``  ``d``                     KL(p || q)                           0
``k2``  ``d^2 / 2``               KL(p || q) + O(d^3)                  that of KL(p || q)
``k3``  ``exp(-d) - 1 + d``       KL(p || q)                           that of KL(q || p); TRL's term
``s4``  ``max(p d, 0)``           no divergence, see below             0 where p < q
======  ========================  ===================================  =========================================

"As a loss" means through the log-probability of the sampled token alone, the sample itself held fixed, which is what an
optimiser sees of a term in the loss of TRL or S4.

S4's term weighs d by the token's own probability, though the token was already drawn by it, and forgives every token
that the policy made less likely. Its mean ``sum p^2 max(d, 0)`` is not a function of the divergence: split each token
into two of half its probability, under both models, and the KL stays as it is while S4's mean halves.

Contract: tensors of one shape in, that shape out, each element by itself, no clipping, dtype kept. Exact in the limits
of that dtype: ``k3`` near d = 0 is computed by ``expm1`` and keeps its relative accuracy to about the square root of
the dtype's resolution. Where q is 0, k1 and k2 are infinite and k3 too.

Left out on purpose: penalties in the reward, which are deposits (divergence.py). TRL computes its own loss; these
functions show and test, they are never trained with.
"""

import torch
from torch import Tensor


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """The log-ratio of the sampled token, in nats; of either sign."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """Half the squared log-ratio."""
    return (policy - reference).square() / 2


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """TRL's term: never negative, unbiased where q is 0 only where p is."""
    ratio = reference - policy
    return torch.expm1(ratio) - ratio


def s4(policy: Tensor, reference: Tensor) -> Tensor:
    """S4's one-sided term ``clamp(p (log p - log q), min=0)``."""
    return (policy.exp() * (policy - reference)).clamp(min=0)


TERMS = {"k1": k1, "k2": k2, "k3": k3, "s4": s4}
"""By name, in the order in which they are shown."""
