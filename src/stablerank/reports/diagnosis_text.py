"""The health of a run as plain text for the terminal.

Contract: no escape codes, at most 100 columns but for a path, which is never broken; text from the run loses every
control character.
"""

import textwrap
from collections.abc import Iterable, Iterator

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.explain import Unchecked
from stablerank.reports import words
from stablerank.reports.diagnosis import Health

WIDTH = 100
MOST_ZEROS = 3
"""Stretches without signal that are told; a long run may have a hundred."""


def text(health: Health) -> str:
    """The whole answer, the verdict first."""
    diagnoses = health.diagnoses
    blocks = [_wrapped(health.subject)]
    blocks += [_told(diagnosis) for diagnosis in diagnoses.found] or [_wrapped(diagnoses.verdict)]
    blocks += [
        _listed("Also seen, and explained by the first:", [diagnosis.sentence for diagnosis in diagnoses.consequences]),
        _listed("What the run did:", diagnoses.story),
        _listed("Collapse:", [health.chain] if health.chain else []),
        _listed("Alarms that it raised:", health.alarm_sentences),
        _listed("Steps that taught nothing:", _shortened(health.zeros)),
        _wrapped(f"Looked for and not found: {', '.join(diagnoses.clear)}." if diagnoses.clear else ""),
        _listed("Could not be looked for:", _lacking(diagnoses.unchecked)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _told(diagnosis: Diagnosis) -> str:
    lines = [
        _wrapped(diagnosis.sentence, "! " if diagnosis.severity == "problem" else "* "),
        _wrapped(diagnosis.remedy, "  Change: "),
        _wrapped(diagnosis.evidence, "  Seen: "),
    ]
    return "\n".join(lines)


def _lacking(unchecked: Iterable[Unchecked]) -> Iterator[str]:
    """One line a missing fact, with the causes that need it."""
    causes: dict[str, list[str]] = {}
    for one in unchecked:
        causes.setdefault(one.missing, []).append(one.title)
    for missing, titles in causes.items():
        yield f"{', '.join(titles)} (needs {missing})"


def _shortened(zeros: tuple[str, ...]) -> list[str]:
    more = len(zeros) - MOST_ZEROS
    return [*zeros[:MOST_ZEROS], *([f"and {more} more"] if more > 0 else [])]


def _listed(title: str, sentences: Iterable[str]) -> str:
    lines = [_wrapped(sentence, "- ") for sentence in sentences]
    return "\n".join([title, *lines]) if lines else ""


def _wrapped(sentence: str, lead: str = "") -> str:
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent=lead, subsequent_indent="  " if lead else "")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return "\n".join(wrapper.wrap(words.plain(sentence)))
