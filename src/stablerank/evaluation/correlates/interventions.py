"""One thing changed at a time in a real answer, with the sign that the paper's account of stable rank predicts.

arXiv 2512.02807, section 5, reads correlations as mechanisms: stable rank rewards coherence and relevance, punishes
padding and repetition, and likes the contrastive and causal markers of good reasoning. If so, an edit that spoils one
of these must move it. ``claim`` is that sign: +1, -1, or 0 where the paper claims nothing.

`CONTROLS` change length and, as far as an edit can, nothing else; effects.py measures every edit against them.
``pad_filler`` is itself such a change: there, length is the mechanism and is not taken out.

Left out on purpose: edits by a language model, which change more than one thing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from stablerank.evaluation.correlates.length_edits import cut, pad
from stablerank.evaluation.correlates.markdown_edits import strip_markdown
from stablerank.evaluation.correlates.marker_edits import delete_markers, insert_marker
from stablerank.evaluation.correlates.number_edits import corrupt_number
from stablerank.evaluation.correlates.sentence_edits import duplicate_sentence, shuffle_sentences
from stablerank.rewards.rollout import Prompt

Claim = Literal[-1, 0, 1]
_PADDED = 0.2


@dataclass(frozen=True)
class Case:
    """A real answer; ``other`` answers another prompt, ``wrong`` is the span of its first wrong step."""

    id: str
    group: str
    prompt: Prompt
    answer: str
    other: str | None = None
    wrong: tuple[int, int] | None = None


Edit = Callable[[Case, Random], str | None]
"""The changed answer, or None where the edit does not apply."""


@dataclass(frozen=True)
class Intervention:
    """One edit, the mechanism that it tests, and the sign claimed for the change of the score."""

    name: str
    mechanism: str
    claim: Claim
    edit: Edit
    length_controlled: bool = True


INTERVENTIONS = (
    Intervention("shuffle_sentences", "coherence", -1, lambda case, rng: shuffle_sentences(case.answer, rng)),
    Intervention("swap_answer", "relevance", -1, lambda case, _: case.other),
    Intervention("duplicate_sentence", "density", -1, lambda case, rng: duplicate_sentence(case.answer, rng)),
    Intervention("pad_filler", "brevity", -1, lambda case, rng: pad(case.answer, rng, _PADDED), False),
    Intervention("insert_contrastive", "contrast", 1, lambda case, rng: insert_marker(case.answer, rng, "contrastive")),
    Intervention("delete_contrastive", "contrast", -1, lambda case, _: delete_markers(case.answer, "contrastive")),
    Intervention("insert_causal", "cause", 1, lambda case, rng: insert_marker(case.answer, rng, "causal")),
    Intervention("delete_causal", "cause", -1, lambda case, _: delete_markers(case.answer, "causal")),
    Intervention("strip_markdown", "format", 0, lambda case, _: strip_markdown(case.answer)),
    Intervention("corrupt_number", "correctness", -1, lambda case, rng: corrupt_number(case.answer, rng)),
    Intervention(
        *("corrupt_first_wrong_step", "correctness", -1),
        lambda case, rng: None if case.wrong is None else corrupt_number(case.answer, rng, case.wrong),
    ),
)


def _padded(percent: int) -> Edit:
    return lambda case, rng: pad(case.answer, rng, percent / 100)


def _cut(percent: int) -> Edit:
    return lambda case, _: cut(case.answer, percent / 100)


CONTROLS: dict[str, Edit] = {
    **{f"pad_{percent}": _padded(percent) for percent in (5, 20, 60)},
    **{f"cut_{percent}": _cut(percent) for percent in (5, 20, 50)},
}
"""Neutral filler behind an answer, and answers that stop early, by per cent of their words."""


def edited(case: Case, seed: int = 0) -> dict[str, str]:
    """Every control and intervention that applies to a case, by name; the same for the same seed."""
    edits = {**CONTROLS, **{each.name: each.edit for each in INTERVENTIONS}}
    # Each edit has its own numbers, so that adding one changes no other.
    texts = {name: edit(case, Random(f"{seed}/{case.id}/{name}")) for name, edit in edits.items()}
    return {name: text for name, text in texts.items() if text is not None}


def with_others(cases: Sequence[Case]) -> list[Case]:
    """The cases with the answer, among those to other prompts, that is nearest in characters; None if there is none."""
    return [replace(case, other=_nearest(case, cases)) for case in cases]


def _nearest(case: Case, cases: Sequence[Case]) -> str | None:
    others = (other.answer for other in cases if other.group != case.group and other.answer != case.answer)
    return min(others, key=lambda answer: abs(len(answer) - len(case.answer)), default=None)
