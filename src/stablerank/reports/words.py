"""Numbers and foreign text as people read them; shared by the page and the terminal summary."""

import math
import unicodedata

from stablerank.reports.read import Score

MISSING = "not recorded"


def percent(share: float, digits: int = 1) -> str:
    """``38.3 %``; a share that is NaN was not recorded."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else MISSING


def interval(score: Score) -> str:
    """``34.0 to 42.6``, in per cent."""
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def points(score: Score) -> str:
    """A difference of two shares, in percentage points, always with its sign."""
    return f"{_signed(score.value)} points"


def points_interval(score: Score) -> str:
    """``+24.6 to +33.1``, in percentage points."""
    return f"{_signed(score.low)} to {_signed(score.high)}"


def duration(seconds: float) -> str:
    """Two units at most: ``48 s``, ``4 min 10 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: float) -> str:
    """Decimal gigabytes, the unit of the box a machine came in."""
    return f"{size / 1e9:.2f} GB" if math.isfinite(size) else MISSING


def visible(character: str) -> str | None:
    """What to show in place of a character that a reader could not see or that reorders its neighbours.

    None for ordinary characters, line breaks and tabs. The code point, ``<U+202E>``, for controls, bidirectional
    overrides, zero-width and other format characters, line separators, lone surrogates, private and unassigned ones.
    """
    seen = character in "\n\t" or unicodedata.category(character) not in _UNSEEN
    return None if seen else f"<U+{ord(character):04X}>"


def plain(text: str) -> str:
    """Foreign text for one line of a terminal: no control character, escape sequence or line break survives."""
    return "".join(" " if c in "\n\t" else visible(c) or c for c in text)


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\u2212")


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
