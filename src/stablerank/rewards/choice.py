r"""Multiple choice: did the completion settle on the right option, by letter or by text?

What counts as its final choice, the first of these that is there:

1. the last balanced ``\boxed{...}``;
2. what follows the last "answer is", "answer:", "correct option is" and their like;
3. the last line that is not blank.

It has to be an option's letter, alone, in brackets or before more words, or an option's text. A choice between two
("A or B", "(B) Paris" where Paris is A, a text that two options share) is none. No choice gives 0.0 and is counted; a
gold answer that names no option makes its completions unscorable and is counted.

Only the last 2,000 characters are read, after one pass for the box: linear in any text.

Left out on purpose: letters at the start of a long explanation, several right options, option texts within prose.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.outcome import READ_CHARACTERS, answer_text
from stablerank.rewards.rollout import Rollout

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PHRASE = re.compile(
    r"\b(?:answer(?: to [^.\n]{1,80}?)?|(?:correct|right|best) (?:choice|option))[*_ ]{0,4}(?: is\b|:|=)", re.IGNORECASE
)
_LABEL = re.compile(r"[(\[]\s?([A-Za-z])\s?[)\]]|([A-Za-z])(?![A-Za-z0-9'’])")
_DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|\s)|[{}$*_`\"“”]")
_SECOND = re.compile(r"\s?(?:,|/|&|\bor\b|\band\b)\s?(?:[(\[]\s?[A-Za-z]\s?[)\]]|[A-Z](?![A-Za-z0-9'’]))")
_CONNECTIVE = re.compile(r"\s?(?:$|[^\w\s]|(?:because|since|as|for|which|with|so|due|given)\b)")
_Options = dict[str, str]
"""Letter to text; texts are empty where the data gives none."""


class MultipleChoiceReward(Reward):
    """1.0 where the completion settles on the gold option of column ``answer_column``, else 0.0.

    The gold answer is a letter, an option's text or, as a number, an option's position from 0. ``options_column`` holds
    a list of texts, a mapping of letters to texts, or ``{"label": [...], "text": [...]}``; without it only letters can
    be read.

    Notes: ``parse_failures`` completions without one choice, ``unreadable_golds`` gold answers that name no option
    (reward NaN).
    """

    name = "multiple_choice"

    def __init__(self, answer_column: str = "answer", options_column: str | None = None) -> None:
        self.answer_column = answer_column
        self.options_column = options_column

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError if the data lacks a column."""
        golds = rollout.column(self.answer_column, self.name)
        raw = rollout.column(self.options_column, self.name) if self.options_column else [None] * len(rollout)
        options = [read_options(value) for value in raw]
        right = [_gold_letter(gold, there) for gold, there in zip(golds, options, strict=True)]
        chosen = [final_choice(text, there) for text, there in zip(rollout.completions, options, strict=True)]
        rewards = [None if gold is None else float(gold == letter) for gold, letter in zip(right, chosen, strict=True)]
        notes = {"parse_failures": chosen.count(None), "unreadable_golds": right.count(None)}
        return trajectory_deposit(rewards, rollout.completion_mask_NT, notes)


class MultipleChoiceSpec(RewardSpecBase):
    """1.0 for the right option, by letter or text, else 0.0."""

    judges: ClassVar[bool] = True

    kind: Literal["multiple_choice"] = "multiple_choice"
    answer_column: str = Field(default="answer", min_length=1, description="column of the right letter, text or index")
    options_column: str | None = Field(default=None, min_length=1, description="column of the options; unset: letters")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        return MultipleChoiceReward(self.answer_column, self.options_column)


def read_options(value: Any) -> _Options:
    """Letter to plain text of one row's options; every letter without a text where there are none."""
    if isinstance(value, Mapping) and {"label", "text"} <= value.keys():
        value = dict(zip(value["label"], value["text"], strict=False))
    if isinstance(value, Mapping):
        # Data sets with columns of one type fill a row's missing letters with None.
        return {str(letter).upper(): _plain(str(text)) for letter, text in value.items() if text is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {letter: _plain(str(text)) for letter, text in zip(LETTERS, value, strict=False)}
    return dict.fromkeys(LETTERS, "")


def final_choice(completion: str, options: _Options) -> str | None:
    """The letter that a completion settles on, or None."""
    end = answer_text(completion)
    if end.startswith("\\boxed"):
        return _choice(end, options)
    end = completion[-READ_CHARACTERS:]
    phrases = list(_PHRASE.finditer(end))
    if phrases and (said := _choice(_first_line(end[phrases[-1].end() :].lstrip(" :=*_\n\t-")), options)):
        return said
    return _choice(end.rstrip().rpartition("\n")[2], options)


def _choice(text: str, options: _Options) -> str | None:
    """The one option that a short text names."""
    text = _DRESS.sub("", text).strip()
    named = _by_text(text, options)
    label = _LABEL.match(text)
    letter = (label[1] or label[2]) if label else ""
    if not label or letter.upper() not in options or _is_a_word(label, text):
        return named
    rest = text[label.end() :]
    if _SECOND.match(rest) or _by_text(rest.lstrip(" .):,-–—"), options) not in (None, letter.upper()):
        return None
    return letter.upper() if named in (None, letter.upper()) else None


def _is_a_word(label: re.Match[str], text: str) -> bool:
    """Whether what looks like a bare letter is English: "a dog", "I think", or any small letter before words."""
    bare = label[2]
    if not bare or (bare.isupper() and bare not in "AI"):
        return False
    return not _CONNECTIVE.match(text, label.end())


def _by_text(text: str, options: _Options) -> str | None:
    plain = _plain(text)
    letters = [letter for letter, option in options.items() if option and option == plain]
    return letters[0] if len(letters) == 1 else None


def _gold_letter(gold: Any, options: _Options) -> str | None:
    if isinstance(gold, int) and not isinstance(gold, bool):
        return list(options)[gold] if any(options.values()) and 0 <= gold < len(options) else None
    text = str(gold or "").strip()
    bare = text.strip("().[] ").upper()
    found = {_by_text(text, options), bare if bare in options else None} - {None}
    return found.pop() if len(found) == 1 else None


def _plain(text: str) -> str:
    """A text as it is compared: small letters, single blanks, no markup, no stop at its end."""
    return " ".join(_DRESS.sub("", text).split()).rstrip(" .,;").casefold()


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
