"""Records built by hand: a run that learns, and ways to spoil it."""

import math
from pathlib import Path

import numpy as np
import pytest

from stablerank.runs.record import RunRecord

STEPS = 40


def interval(value: float, problems: int = 64) -> dict[str, float]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.01) / problems)
    return {"pass_at_1": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def held_out(values, every=5, phase="curve"):
    return [{"step": every * (at + 1), "phase": phase, **interval(value)} for at, value in enumerate(values)]


def learning(seed: int = 0, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Columns of a log as a healthy run of the zoo writes them; noise of a batch of 64."""
    rng, step_S = np.random.default_rng(seed), np.arange(1, steps + 1)
    rise_S = 1 / (1 + np.exp(-(step_S - 15) / 4))

    def noisy(mean_S, deviation):
        return mean_S + deviation * rng.normal(size=steps)

    reward_S = np.clip(noisy(0.25 + 0.7 * rise_S, 0.05), 0, 1)
    return {
        "step": step_S,
        "loss": noisy(0 * rise_S, 0.05),
        "eval_loss": noisy(1 - 0.3 * rise_S, 0.002),
        "grad_norm": np.abs(noisy(0.25 - 0.1 * rise_S, 0.05)) + 0.02,
        "learning_rate": np.minimum(step_S - 1, 5) * 1e-4,
        "reward": reward_S,
        "reward_std": np.sqrt(reward_S * (1 - reward_S)) + 0.01,
        "frac_reward_zero_std": np.clip(noisy(0.1 + 0.7 * rise_S, 0.05), 0, 1),
        "completions/mean_length": noisy(12 + 22 * rise_S, 0.8),
        "completions/max_length": np.full(steps, 52.0),
        "completions/clipped_ratio": np.zeros(steps),
        "kl": np.abs(noisy(0.04 * rise_S, 0.002)) * (step_S > 2),
        "entropy": np.abs(noisy(0.33 - 0.3 * rise_S, 0.01)),
        "advantage_scale": np.abs(noisy(1 - 0.3 * rise_S, 0.03)),
        "answered": np.ones(steps),
        "reward_length_correlation": noisy(0.3 * rise_S, 0.1),
        "rewards/stable_rank/relative_spread": np.abs(noisy(0.06 - 0.02 * rise_S, 0.008)),
        "duplicate_share": np.clip(noisy(0.05 + 0.1 * rise_S, 0.02), 0, 1),
        "near_duplicate_share": np.clip(noisy(0.3 + 0.2 * rise_S, 0.05), 0, 1),
        "cut_by_window": np.zeros(steps),
        "sigma1_first_token": noisy(0.05 + 0 * rise_S, 0.002),
        "sigma1_special_tokens": noisy(0.1 + 0 * rise_S, 0.002),
    }


def record_of(columns, *, evaluations=(), completions=(), settings=None) -> RunRecord:
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(columns[n] for n in names), strict=True)]
    rows = [{key: int(v) if key == "step" else float(v) for key, v in row.items()} for row in rows]
    return RunRecord(
        Path("run"), "trl", settings or {}, tuple(rows), tuple(evaluations), tuple(completions), tuple(rows)
    )


HEALTHY_CURVE = held_out([0.38, 0.5, 0.72, 0.93, 0.97, 0.98, 0.97, 0.98])
FALLING_CURVE = held_out([0.4, 0.6, 0.95, 0.97, 0.7, 0.4, 0.15, 0.1])


def ramp(start, end, begin, finish, steps=STEPS):
    """From ``start`` to ``end`` between two steps."""
    return np.interp(np.arange(1, steps + 1), [begin, finish], [start, end])


def jittered(mean_S, seed, size=0.03):
    return mean_S * (1 + size * np.random.default_rng(seed).normal(size=len(mean_S)))


def spoilt(name: str, seed: int = 0) -> RunRecord:
    """A run with one known fault."""
    columns, curve, settings = learning(seed), HEALTHY_CURVE, {}
    match name:
        case "learning_rate_too_high":
            columns |= {
                "reward": jittered(ramp(0.3, 0.0, 4, 7), seed),
                "kl": ramp(0, 12, 2, 8),
                "entropy": ramp(0.3, 1.5, 3, 8),
                "completions/clipped_ratio": ramp(0, 0.95, 3, 10),
                "completions/mean_length": ramp(12, 78, 3, 10),
            }
            curve = held_out([0.05, 0, 0, 0, 0, 0, 0, 0])
        case "beta_too_low":
            columns |= {"reward": jittered(ramp(0.3, 0.9, 5, 40), seed), "kl": ramp(0, 4, 10, 30)}
            columns["completions/mean_length"] = jittered(ramp(12, 13, 1, 40), seed)
            curve = FALLING_CURVE
        case "reward_misled":
            columns |= {"reward": jittered(ramp(0.3, 0.85, 5, 40), seed), "kl": ramp(0, 0.2, 5, 40)}
            columns["completions/mean_length"] = jittered(ramp(12, 33, 5, 15), seed)
            columns["reward_length_correlation"] *= 0
            curve = FALLING_CURVE
        case "step_spam":
            columns |= {
                "reward": jittered(ramp(1, 12, 5, 40), seed),
                "completions/mean_length": jittered(ramp(12, 78, 5, 30), seed),
                "completions/clipped_ratio": ramp(0, 0.9, 20, 32),
                "reward_length_correlation": jittered(ramp(0.5, 0.9, 1, 20), seed),
            }
            curve = FALLING_CURVE
        case "length_penalty_too_strong":
            columns |= {
                "reward": ramp(-1.5, -0.2, 3, 20),
                "completions/mean_length": jittered(ramp(12, 1.5, 3, 18), seed),
                "answered": ramp(1, 0, 6, 18),
                "reward_length_correlation": jittered(ramp(-0.8, -0.9, 1, 20), seed),
            }
            curve = held_out([0.38, 0.2, 0.05, 0, 0, 0, 0, 0])
        case "cap_too_short":
            columns |= {"completions/clipped_ratio": jittered(ramp(0.5, 0.3, 1, 40), seed)}
            columns["completions/mean_length"] = jittered(np.full(STEPS, 5.5), seed)
        case "verifier_rejects":
            columns |= {"reward": np.zeros(STEPS), "reward_std": np.zeros(STEPS)}
            columns |= {"frac_reward_zero_std": np.ones(STEPS), "grad_norm": np.zeros(STEPS), "kl": np.zeros(STEPS)}
            columns["completions/mean_length"] = jittered(np.full(STEPS, 12.0), seed)
            curve = held_out([0.38, 0.37, 0.39, 0.38, 0.38, 0.36, 0.38, 0.38])
        case "reward_constant":
            return spoilt_constant(seed)
        case "alike_groups":
            columns |= {"frac_reward_zero_std": np.ones(STEPS), "reward": jittered(np.full(STEPS, 0.4), seed)}
            columns |= {"reward_std": np.full(STEPS, 0.5), "kl": np.zeros(STEPS), "grad_norm": np.zeros(STEPS)}
        case "one_sample_groups":
            columns |= {"reward": jittered(np.full(STEPS, 0.35), seed, 0.2), "reward_std": np.full(STEPS, 0.5)}
            columns |= {"frac_reward_zero_std": np.zeros(STEPS), "grad_norm": np.zeros(STEPS), "kl": np.zeros(STEPS)}
            curve = held_out([0.38] * 8)
        case "wrong_reference":
            columns["kl"] = 0.05 + columns["kl"]
        case "no_learning":
            columns |= {"learning_rate": np.zeros(STEPS), "kl": np.zeros(STEPS)}
            columns["reward"] = jittered(np.full(STEPS, 0.3), seed, 0.2)
            curve = held_out([0.38] * 8)
        case "overfitting":
            columns |= {"loss": ramp(1, 0.1, 1, 40), "eval_loss": ramp(0.7, 1.1, 15, 40)}
            columns["eval_loss"][:15] = ramp(1, 0.7, 1, 15)[:15]
        case "not_finite":
            columns["loss"] = np.where(np.arange(STEPS) < 30, columns["loss"], np.nan)
        case "identical_completions" | "cut_by_window" | "template_owns" | "alike_states":
            columns["rewards/stable_rank/relative_spread"] = jittered(ramp(0.06, 0.002, 10, 25), seed, 0.2)
            column = {"identical_completions": "duplicate_share", "cut_by_window": "cut_by_window"}
            column |= {"template_owns": "sigma1_special_tokens"}
            if name in column:
                columns[column[name]] = ramp(0.05, 0.9, 10, 25)
            curve = ()
        case "far_policy":
            columns["kl"] = jittered(ramp(0, 0.9, 3, 40), seed)
            curve = ()
        case "format_lost":
            columns["answered"] = ramp(1, 0.1, 15, 25)
        case "unexplained":
            del columns["kl"]
            columns["reward"] = jittered(np.interp(np.arange(1, 41), [1, 15, 20, 30], [0.3, 0.9, 0.9, 0.1]), seed)
            curve = FALLING_CURVE
        case _:
            raise KeyError(name)
    return record_of(columns, evaluations=curve, settings=settings)


def spoilt_constant(seed: int) -> RunRecord:
    columns = learning(seed)
    columns |= {"reward": np.ones(STEPS), "reward_std": np.zeros(STEPS), "frac_reward_zero_std": np.ones(STEPS)}
    columns |= {"grad_norm": np.zeros(STEPS), "kl": np.zeros(STEPS)}
    return record_of(columns, evaluations=held_out([0.38] * 8))


@pytest.fixture(scope="session")
def make():
    """Builders of records, for the tests of this folder."""

    class Make:
        learning = staticmethod(learning)
        record = staticmethod(record_of)
        held_out = staticmethod(held_out)
        spoilt = staticmethod(spoilt)
        ramp = staticmethod(ramp)
        healthy_curve, falling_curve = HEALTHY_CURVE, FALLING_CURVE

        @staticmethod
        def healthy(seed=0):
            return record_of(learning(seed), evaluations=HEALTHY_CURVE)

    return Make
