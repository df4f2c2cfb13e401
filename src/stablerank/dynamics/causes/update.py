"""Causes in the size of the update: too large a learning rate, none to speak of, and numbers that are none."""

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.harm import CLEAR, HALVED
from stablerank.dynamics.causes.series import Series, shown

FAR_KL = 0.3
"""Nats a token: over an answer of thirty tokens nine nats, text thousands of times as likely as under the reference.
Runs of the zoo that learn well end at 0.03 to 0.06."""
SPIKE = 10.0
"""Times its opening that a gradient norm must reach; it swings by a factor of 3 in runs that learn well."""
LOOSENED = 2.0
"""Times its opening that the entropy must reach; learning lowers it."""
STILL_KL = 1e-4
"""Nats a token below which the policy has not moved; a learning run of the zoo passes it at its third update."""
FEWEST_STILL = 10
"""Logged steps before standing still says anything: a warm-up alone takes some."""


def high_learning_rate(facts: Facts) -> Diagnosis | None:
    """The reward falls, and the update shows that it overshot."""
    reward = facts.get("reward")
    lost = None if reward is None else _lost(facts, reward)
    signs = _overshoot(facts)
    if reward is None or lost is None or not signs:
        return None
    rate = facts.get("learning_rate")
    used = "" if rate is None else f" (it was {shown(rate.largest)})"
    lower = "a tenth of it" if rate is None else shown(rate.largest / 10)
    return Diagnosis(
        "learning_rate_too_high",
        f"The learning rate is too high{used}: the policy overshot and came apart, with the reward down from "
        f"{shown(_best(reward))} to {shown(reward.closing)} for good by step {lost}, while {signs[0]}.",
        f"{'; '.join(signs)}. Rule: the reward loses half of its best (where it can be negative, half of its first "
        f"deviation), with a KL above {FAR_KL:g} nats a token, a gradient norm {SPIKE:g} times that of the beginning, "
        f"or {LOOSENED:g} times its entropy.",
        f"Lower the learning rate to {lower}, warm it up over ten steps or more, and go back to a checkpoint before "
        f"step {lost}.",
        lost,
        "problem",
    )


def _best(reward: Series) -> float:
    # The first row has seen no update: a run that breaks within the first window has its best there.
    return max(reward.first, reward.peak)


def _lost(facts: Facts, reward: Series) -> int | None:
    """The step from which the reward has fallen for good."""
    scale, deviation = abs(_best(reward)), facts.get("reward_std")
    if reward.value_S.min() < 0:
        scale = max(scale, 0.0 if deviation is None else deviation.first)
    lost = reward.since(reward.value_S <= _best(reward) - HALVED * scale)
    return lost if lost is not None and reward.change_from_peak() <= -CLEAR else None


def _overshoot(facts: Facts) -> list[str]:
    """What shows that updates were too large, in words."""
    signs, kl, gradient, entropy = [], facts.get("kl"), facts.get("grad_norm"), facts.get("entropy")
    if kl is not None and kl.largest >= FAR_KL:
        signs.append(f"the KL to the reference rose to {shown(kl.largest)} nats a token")
    if gradient is not None and gradient.largest >= SPIKE * gradient.opening > 0:
        signs.append(f"the gradient norm rose from {shown(gradient.opening)} to {shown(gradient.largest)}")
    if entropy is not None and entropy.change >= CLEAR and entropy.peak >= LOOSENED * entropy.opening > 0:
        signs.append(f"the entropy rose from {shown(entropy.opening)} to {shown(entropy.peak)} nats a token")
    return signs


def no_learning(facts: Facts) -> Diagnosis | None:
    """Nothing moves: the learning rate is 0, or the policy stays where it began."""
    rate, kl = facts.get("learning_rate"), facts.get("kl")
    if rate is not None and rate.largest == 0 and len(rate) > 1:
        sentence = "The learning rate is 0, so nothing was learnt."
        evidence = f"learning rate 0 at each of {len(rate)} logged steps"
    elif kl is not None and len(kl) >= FEWEST_STILL and kl.largest <= STILL_KL:
        sentence = f"The policy did not move in {len(kl)} logged steps: {_held_by(facts)}."
        evidence = f"the KL to the reference never exceeds {shown(kl.largest)} nats a token"
    else:
        return None
    return Diagnosis(
        "no_learning",
        sentence,
        f"{evidence}. Rule: learning rate 0, or a KL of at most {STILL_KL:g} over at least {FEWEST_STILL} steps.",
        "Set a learning rate at which the reward moves within twenty steps: of the order of 1e-4 for LoRA and 1e-6 for "
        "full fine-tuning.",
        facts.first_step,
        "problem",
    )


def _held_by(facts: Facts) -> str:
    gradient, rate = facts.get("grad_norm"), facts.get("learning_rate")
    if gradient is not None and gradient.largest == 0:
        return "its gradient is 0, so either every advantage is 0 or no weight is trained"
    small = "" if rate is None else f" ({shown(rate.largest)})"
    return f"either the learning rate{small} is far too small, or beta holds it to the reference"


def flat_reward(facts: Facts) -> Diagnosis | None:
    """A reward that neither rises nor falls, where nothing tells why."""
    reward, alike = facts.get("reward"), facts.get("zero_std")
    if reward is None or len(reward) < FEWEST_STILL or reward.is_constant or abs(reward.change_to_peak()) >= CLEAR:
        return None
    if reward.change_from_peak() <= -CLEAR or (alike is not None and alike.closing >= 0.5):
        return None
    return Diagnosis(
        "reward_flat",
        f"The reward did not change beyond its noise in {len(reward)} logged steps ({shown(reward.opening)} at first, "
        f"{shown(reward.closing)} at the end): either the learning rate is too small, or the run too short, or the "
        "reward says nothing that can be learnt.",
        f"a change of {shown(reward.change)} standard errors. Rule: less than {CLEAR:g} over at least {FEWEST_STILL} "
        "steps, with half of the groups or more that have variance.",
        "Try three times the learning rate on twenty steps, and look at a few groups with `stablerank inspect-reward`.",
        None,
        "warning",
    )


def not_finite(facts: Facts) -> Diagnosis | None:
    """A number of the log that is NaN or infinite."""
    if facts.broken is None:
        return None
    column, step = facts.broken
    return Diagnosis(
        "not_finite",
        f"The {column.replace('_', ' ')} is NaN or infinite at step {step}, and what was trained after it is lost.",
        f"`{column}` at step {step}. Rule: any value of loss, gradient norm, KL or entropy that is no finite number.",
        f"Go back to a checkpoint before step {step}; lower the learning rate, keep gradient clipping on, and train "
        "in float32 or bfloat16 rather than float16.",
        step,
        "problem",
    )
