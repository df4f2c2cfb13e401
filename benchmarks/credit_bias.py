"""Which objective's gradient does each credit rule follow? An enumerable bandit, exactly: nothing is sampled.

The world: a step is one of two lines, or from the second step on a stop; after HORIZON lines it is over. The policy is
a softmax table over (step, line before), so it decides how long a completion gets. A line's reward, in (0, 1) like a
judge's probability, depends on all three. Rules are the library's: every group of G completions is credited by
`advantages`, and ``(1/G) sum_i sum_t A_it grad log pi`` is weighed by the probability of the group. Gradients of the
objectives come from autograd through the sum over all trajectories. fp64.

Told of each rule, over random worlds:

- cosine with the gradient of each objective, and the bias: ``|u - c g| / |c g|`` with the best factor c, which the
  learning rate absorbs, for the objective it comes nearest to; c itself.
- noise: the root of the update's total variance over its norm, for one group.
- pay for length: the update's norm where every line is worth 1, over the norm of the gradient of E[S].
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import print_table, write_results
from rich.markup import escape
from torch import Tensor

from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit

# Legend: K trajectories, T tokens, P policy parameters, M groups of G.
HORIZON, LINES = 3, 2
STOP = LINES
SIZES = (2, 3, 4)
Objective = Callable[["World", Tensor], Tensor]


@dataclass(frozen=True)
class World:
    """All trajectories of a policy with ``logits`` (states, actions): where each was, what it did and what it got."""

    logits: Tensor
    states_KT: Tensor
    actions_KT: Tensor
    rewards_KT: Tensor
    tokens_KT: Tensor

    @property
    def lines_KT(self) -> Tensor:
        """Tokens with a deposit; a stop has none."""
        return self.tokens_KT & (self.actions_KT != STOP)

    @property
    def steps_K(self) -> Tensor:
        return self.lines_KT.sum(1).double()

    def log_policy(self, logits: Tensor) -> Tensor:
        """``log pi`` of every token, ``(K, T)``; the first step cannot be a stop."""
        allowed = torch.ones_like(logits, dtype=torch.bool)
        allowed[0, STOP] = False
        table = logits.where(allowed, -torch.inf).log_softmax(-1)
        return table[self.states_KT, self.actions_KT].where(self.tokens_KT, 0.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        return self.log_policy(logits).sum(1).exp()

    def gradient(self, objective: Objective) -> Tensor:
        """Of an objective of the trajectories' probabilities, ``(P,)``."""
        logits = self.logits.clone().requires_grad_()
        return torch.autograd.grad(objective(self, self.probabilities(logits)), logits)[0].flatten()

    def scores(self) -> Tensor:
        """``grad log pi`` of every token, ``(K, T, P)``."""
        found: Tensor = torch.autograd.functional.jacobian(self.log_policy, self.logits)
        return found.flatten(2)


OBJECTIVES: dict[str, Objective] = {
    "E[sum r]": lambda world, p_K: p_K @ world.rewards_KT.sum(1),
    "E[mean r]": lambda world, p_K: p_K @ (world.rewards_KT.sum(1) / world.steps_K),
    "E[last r]": lambda world, p_K: p_K @ world.rewards_KT.gather(1, world.steps_K.long()[:, None] - 1)[:, 0],
    "E[sum r] / E[S]": lambda world, p_K: (p_K @ world.rewards_KT.sum(1)) / (p_K @ world.steps_K),
}


def expected_steps(world: World, p_K: Tensor) -> Tensor:
    return p_K @ world.steps_K


def random_world(seed: int, *, equal_rewards: bool = False) -> World:
    rng = np.random.default_rng(seed)
    states = 1 + (HORIZON - 1) * LINES
    logits = torch.from_numpy(rng.standard_normal((states, LINES + 1)))
    worth = torch.from_numpy(rng.uniform(size=(states, LINES + 1)))
    worth = torch.ones_like(worth) if equal_rewards else worth
    paths = [
        (*lines, STOP)[:HORIZON]
        for length in range(1, HORIZON + 1)
        for lines in itertools.product(range(LINES), repeat=length)
    ]
    actions_KT = torch.tensor([[*path, *[STOP] * (HORIZON - len(path))] for path in paths])
    tokens_KT = torch.tensor([[at < len(path) for at in range(HORIZON)] for path in paths])
    # State 0 is the beginning; of later steps there is one for each line that may stand before.
    states_KT = torch.zeros_like(actions_KT)
    states_KT[:, 1:] = 1 + LINES * torch.arange(HORIZON - 1) + actions_KT[:, :-1].clamp(max=LINES - 1)
    rewards_KT = worth[states_KT, actions_KT].where(tokens_KT & (actions_KT != STOP), 0.0)
    return World(logits, states_KT, actions_KT, rewards_KT, tokens_KT)


@dataclass(frozen=True)
class Update:
    """What a rule does to the parameters: ``expected_P``, and the total variance for one group."""

    expected_P: Tensor
    variance: float


def update(world: World, spec: CreditSpec, size: int, *, per_token_mean: bool = False, rescale: bool = False) -> Update:
    """The update of ``spec`` over all groups of ``size``.

    ``per_token_mean``: each completion's sum over tokens is divided by its length, as TRL's loss type ``grpo`` does.
    ``rescale``: rewards are divided by the number of steps before the rule sees them.
    """
    count = len(world.tokens_KT)
    members_MG = torch.cartesian_prod(*[torch.arange(count)] * size)
    rows = members_MG.flatten()
    rewards_KT = world.rewards_KT / world.steps_K[:, None] if rescale else world.rewards_KT
    deposit = Deposit(rewards_KT[rows], world.lines_KT[rows], rewards_KT.sum(1)[rows], "step")
    group_ids = torch.arange(len(members_MG)).repeat_interleave(size)
    credit = advantages([Component(deposit, 1.0, spec)], group_ids, world.tokens_KT[rows])
    advantage_RT = credit.parts[0].advantages_NT
    if per_token_mean:
        advantage_RT = advantage_RT / world.tokens_KT.sum(1)[rows, None]
    update_RP = torch.einsum("rt,rtp->rp", advantage_RT, world.scores()[rows])
    update_MP = update_RP.reshape(len(members_MG), size, -1).mean(1)
    p_M = world.probabilities(world.logits)[members_MG].prod(1)
    expected_P = p_M @ update_MP
    return Update(expected_P, (p_M @ (update_MP - expected_P).square().sum(1)).item())


def compared(expected_P: Tensor, gradient_P: Tensor) -> dict[str, float]:
    """Best factor, relative bias beyond it, and cosine."""
    factor = (expected_P @ gradient_P / gradient_P.square().sum()).item()
    return {
        "factor": factor,
        "bias": ((expected_P - factor * gradient_P).norm() / (abs(factor) * gradient_P.norm())).item(),
        "cosine": (expected_P @ gradient_P / (expected_P.norm() * gradient_P.norm())).item(),
    }


PLAIN = {"scale": "none"}
RULES: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "mean_to_go": ({**PLAIN, "rule": "mean_to_go"}, {}),
    "trajectory_mean": ({**PLAIN, "rule": "trajectory_mean"}, {}),
    "progress": ({**PLAIN, "rule": "progress"}, {}),
    "position": ({**PLAIN, "rule": "position"}, {}),
    "return_to_go": ({**PLAIN, "rule": "return_to_go"}, {}),
    "return_to_go, statistics by trajectory": ({**PLAIN, "rule": "return_to_go", "statistics": "trajectory"}, {}),
    "per_deposit": ({**PLAIN, "rule": "per_deposit"}, {}),
    "return_to_go, uncentred": ({**PLAIN, "rule": "return_to_go", "centre": "none"}, {}),
    "return_to_go of r / S, uncentred": ({**PLAIN, "rule": "return_to_go", "centre": "none"}, {"rescale": True}),
    "mean_to_go, scaled": ({"rule": "mean_to_go"}, {}),
    "trajectory_mean, scaled": ({"rule": "trajectory_mean"}, {}),
    "progress, scaled": ({"rule": "progress"}, {}),
    "position, scaled": ({"rule": "position"}, {}),
    "return_to_go, scaled: DeepSeekMath": ({"rule": "return_to_go"}, {}),
    "return_to_go, scaled, epsilon 1e-8: S4": ({"rule": "return_to_go", "epsilon": 1e-8}, {}),
    "per_deposit, scaled": ({"rule": "per_deposit"}, {}),
    "mean_to_go, loss type grpo": ({**PLAIN, "rule": "mean_to_go"}, {"per_token_mean": True}),
}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}


def measured(spec: CreditSpec, options: dict[str, bool], size: int, worlds: int) -> dict[str, Any]:
    """One rule over all worlds: cosines, the nearest objective, bias and factor for that one, noise, pay for length."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in OBJECTIVES}
    noise, pay = [], []
    for seed in range(worlds):
        world, equal = random_world(seed), random_world(seed, equal_rewards=True)
        moved = update(world, spec, size, **options)
        for name, objective in OBJECTIVES.items():
            for key, value in compared(moved.expected_P, world.gradient(objective)).items():
                found[name].setdefault(key, []).append(value)
        noise.append(moved.variance**0.5 / moved.expected_P.norm().item())
        paid = update(equal, spec, size, **options).expected_P.norm() / equal.gradient(expected_steps).norm()
        pay.append(paid.item())
    cosines = {name: spread(keys["cosine"]) for name, keys in found.items()}
    nearest = max(cosines, key=lambda name: cosines[name]["median"])
    return {
        "cosine": cosines,
        "nearest": nearest,
        "bias": spread(found[nearest]["bias"]),
        "factor": spread(found[nearest]["factor"]),
        "noise": spread(noise),
        "pay_for_length": spread(pay),
    }


def measure(worlds: int) -> dict[str, Any]:
    return {
        f"G = {size}": {
            name: measured(CreditSpec(**spec), options, size, worlds) for name, (spec, options) in RULES.items()
        }
        for size in SIZES
    }


def show(results: dict[str, Any]) -> None:
    for size, rules in results.items():
        rows = []
        for name, found in rules.items():
            cosines = (f"{cosine['median']:.3f}" for cosine in found["cosine"].values())
            bias = f"{100 * found['bias']['median']:.1f} % ({100 * found['bias']['high']:.0f} %)"
            rest = (f"{found[key]['median']:.2f}" for key in ("factor", "noise", "pay_for_length"))
            rows.append([name, *cosines, bias, *rest])
        columns = ("rule", *map(escape, OBJECTIVES), "bias, nearest (worst)", "factor", "noise", "pay")
        print_table(f"cosine with each objective's gradient, median over worlds; {size}", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=20)
    arguments = parser.parse_args()
    results = measure(arguments.worlds)
    show(results)
    write_results("credit_bias", {**vars(arguments), "horizon": HORIZON, "lines": LINES}, results)


if __name__ == "__main__":
    main()
