"""The tables of docs/sr-grpo.md on training, from what `benchmarks/sr_grpo*.py` write."""

from typing import Any

from tables import load, table

Found = dict[str, Any]


def sr_grpo() -> str:
    found = load("sr_grpo")
    base = found["base"]
    rows = [["untouched student", *_of_arm(base)]]
    rows += [[f"`{arm}`", *_of_arm(one)] for arm, one in found["arms"].items()]
    return table(
        "reward | pass@1, mean of seeds (95 % by problem) | each seed | tokens | KL | stable rank, all tokens "
        "| of the response",
        rows,
    )


def _of_arm(one: Found) -> list[str]:
    by_seed = ", ".join(f"{100 * value:.1f}" for value in one.get("by_seed", ()))
    kl = f"{one['kl']:.3f}" if "kl" in one else ""
    return [
        _percent(one["pass_at_1"]),
        by_seed,
        f"{one['length']:.1f}",
        kl,
        *(f"{one['stable_rank'][scope]:.2f}" for scope in ("all", "response")),
    ]


def sr_grpo_right_length() -> str:
    """The second round: stable rank beside a reward for the usual length."""
    found = load("sr_grpo_right_length")
    rows = [[f"`{arm}`", *_of_arm(one)] for arm, one in found["arms"].items()]
    less = found["contrasts"]["stable_rank"]["against"]["right_length"]
    rows.append(["`stable_rank` less `right_length`", _points(less), "", "", "", "", ""])
    return table(
        "reward | pass@1, mean of seeds (95 % by problem) | each seed | tokens | KL | stable rank, all tokens "
        "| of the response",
        rows,
    )


def sr_grpo_contrasts() -> str:
    found = load("sr_grpo")["contrasts"]
    rows = [
        [
            f"`{arm}`",
            *(_points(judged["against"][control]) for control in ("random", "shorter", "longer")),
            "" if judged["helps"] is None else "yes" if judged["helps"] else "no",
        ]
        for arm, judged in found.items()
        if arm not in judged["against"]
    ]
    return table("reward | less `random` | less `shorter` | less `longer` | helps", rows)


def sr_grpo_long() -> str:
    rows = [
        [
            f"`{arm}`",
            str(point["step"]),
            f"{point['kl']:.3f}",
            _percent(point["accuracy"]),
            f"{point['length']:.1f}",
            _distribution(point["reference"]["all"]),
            _number(point["reference"]["all"]["length_correlation"]),
            _auc(point["reference"]["all"]["auc"]),
            _auc(point["reference"]["all"]["matched_auc"]),
            _auc(point["reader"]["all"]["auc"]),
        ]
        for arm, points in load("sr_grpo_long").items()
        for point in points
    ]
    return table(
        "arm | step | KL | right | tokens | stable rank (10, 50, 90 %) | its correlation with length | AUC, reference "
        "| at the same length | AUC, arm's reader",
        rows,
    )


def sr_grpo_smollm2() -> str:
    found = load("sr_grpo_smollm2")
    base = found["base"]
    rows = [["untouched SmolLM2", *_of_arm(base), "", ""]]
    rows += [
        [f"`{arm}`", *_of_arm(one), _points(one["gain"]), "yes" if one["is_finite"] else "no"]
        for arm, one in found["arms"].items()
    ]
    return table(
        "reward | pass@1, mean of seeds (95 % by problem) | each seed | tokens | KL | stable rank, all tokens "
        "| of the response | gain | finite throughout",
        rows,
    )


def _distribution(one: Found) -> str:
    low, middle, high = one["quantiles"]
    return f"{one['mean']:.2f} ({low:.2f}, {middle:.2f}, {high:.2f})"


def _auc(one: Found | None) -> str:
    if one is None:
        return "no such pair"
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}; {one['prompts']} prompts)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _percent(one: Found) -> str:
    return f"{100 * one['value']:.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def _points(one: Found) -> str:
    return f"{100 * one['value']:+.1f} points ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
