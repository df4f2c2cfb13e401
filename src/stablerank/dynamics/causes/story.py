"""What a run did, a sentence a signal, without judging it."""

from collections.abc import Callable

from stablerank.dynamics.causes.facts import Curve, Facts
from stablerank.dynamics.causes.harm import CLEAR
from stablerank.dynamics.causes.series import Series, shown, shown_share

_TOLD = {
    "reward": "The training reward",
    "length": "The length of completions",
    "kl": "The KL to the reference",
    "entropy": "The entropy",
}
_TOLD_AS_SHARES = {"truncated": "The share of answers cut at the limit", "answered": "The share in the format"}


def story(facts: Facts) -> tuple[str, ...]:
    """Held-out curves first, then the signals on record."""
    sentences = [_curve(curve) for curve in facts.curves]
    sentences += [_told(name, facts.columns[key], shown) for key, name in _TOLD.items() if key in facts.columns]
    shares = _TOLD_AS_SHARES.items()
    sentences += [_told(name, facts.columns[key], shown_share) for key, name in shares if key in facts.columns]
    return tuple(sentences)


def _curve(curve: Curve) -> str:
    step_E, value_E = curve.step_E, curve.value_E
    best = int(value_E.argmax())
    return (
        f"Held-out pass@1 began at {shown(value_E[0])} (step {step_E[0]}), was best at {shown(value_E[best])} "
        f"(step {step_E[best]}) and ended at {shown(value_E[-1])} (step {step_E[-1]})."
    )


def _told(name: str, series: Series, words: Callable[[float], str]) -> str:
    opening, closing = words(series.opening), words(series.closing)
    low, high = words(float(series.value_S.min())), words(series.largest)
    if low == high:
        return f"{name} stayed at {closing}."
    if abs(series.change) < CLEAR or opening == closing:
        return f"{name} moved between {low} and {high} ({closing} at the end)."
    return f"{name} {'rose' if series.change > 0 else 'fell'} from {opening} to {closing}."
