"""From an answer to token ids, and which of them are the response.

Legend: L tokens of one text, C characters.

A text is put together from pieces and tokenised once, as a whole:

- ``chat``: the tokenizer's chat template. The response stands verbatim where the template shows what the assistant
  says, as the model would have written it: a template that trims or rewrites what was said (thoughts cut from earlier
  turns) is not followed in that. Beginning and roles are the template's, so ``bos`` changes nothing.
- six texts around prompt and response, of which arXiv 2512.02807 (appendix) names the words and no spacing but that of
  ``plain`` and ``answer``: the other four are our reading. ``bare`` is what TRL makes of plain text: prompt, response.
  A prompt of several messages is their contents, a blank line between; ``bos`` puts before it what the tokenizer
  itself would.

Which tokens are the response: those that cover a character of it. One that straddles prompt and response (a space or
line break merged into its first word) is the response's. ``eos`` closes the response and counts as part of it: up to
the first special token that the chat template puts behind an assistant's words, else the tokenizer's own end token;
without ``eos`` the text stops where the response does. ``turns="all"`` counts the assistant's turns of the prompt too.

Window: the first ``window`` tokens of everything together (appendix H), or the last with ``truncate="left"``.

Special tokens spelled out in a prompt or response are read as such, as every chat template does.

Left out on purpose: tokenizers without offsets (refused by name), images, tools.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stablerank.errors import DataError, ModelError
from stablerank.rewards.rollout import Message, Prompt, completion_text
from stablerank.rewards.scorers.answers import Answer, Status, is_text

TextTemplate = Literal["plain", "response", "assistant", "user_assistant", "question_answer", "answer", "bare"]
Template = Literal["chat", TextTemplate]
Side = Literal["right", "left"]
Turns = Literal["last", "all"]

TEXTS: Mapping[TextTemplate, tuple[str, str]] = {
    "plain": ("", "\n\n"),
    "response": ("", "\n\nResponse:"),
    "assistant": ("", "\n\nAssistant:"),
    "user_assistant": ("User: ", "\nAssistant: "),
    "question_answer": ("Question: ", "\nAnswer: "),
    "answer": ("", "\n\nAnswer:"),
    "bare": ("", ""),
}
"""What stands before the prompt, and between prompt and response."""

Piece = tuple[str, bool]
"""A part of the text, and whether it is the response's."""


@dataclass(frozen=True)
class Layout:
    """How an answer becomes tokens (module header)."""

    template: Template = "chat"
    window: int = 512
    truncate: Side = "right"
    turns: Turns = "last"
    bos: bool = True
    eos: bool = True


DEFAULT_LAYOUT = Layout()


@dataclass(frozen=True)
class Tokens:
    """One text inside its window."""

    ids: tuple[int, ...]
    response: tuple[bool, ...]
    """Whether each token is the response's."""

    @property
    def response_L(self) -> NDArray[np.bool_]:
        """The same as an array."""
        return np.array(self.response, dtype=bool)


def readable(answer: Answer) -> Status:
    """What can be told of an answer without tokens; a prompt that is neither text nor messages is ``not_text``."""
    return answer.status if answer.status != "scored" or _is_prompt(answer.prompt) else "not_text"


def _is_prompt(prompt: object) -> bool:
    if isinstance(prompt, str):
        return is_text(prompt)
    return isinstance(prompt, Sequence) and all(isinstance(turn, Mapping) and _is_turn(turn) for turn in prompt)


def _is_turn(turn: Mapping[str, Any]) -> bool:
    """Content comes as text, as typed parts, or not at all, as in the rollout."""
    content = turn.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str):
        return "role" in turn and (content is None or is_text(content))
    return "role" in turn and all(isinstance(part, Mapping) and is_text(part.get("text", "")) for part in content)


class Encoder:
    """Answers to `Tokens`, with one tokenizer and layout.

    Args:
        tokenizer: a fast one.
        layout: template, window and switches.
        name: what errors call the model.
        context: tokens that the model can read; a longer window means this one.

    Raises:
        ModelError: the tokenizer gives no offsets, or has no chat template where ``chat`` is asked for.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, layout: Layout, name: str = "the model", context: int | None = None
    ) -> None:
        self.tokenizer, self.layout, self.name = tokenizer, layout, name
        self.window = min(layout.window, context or layout.window)
        self._frames: dict[Any, list[str]] = {}
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {name} gives no offsets; save it as a fast one (`tokenizer.json`).")
        if layout.template == "chat" and not tokenizer.chat_template:
            raise ModelError(
                f"{name} has no chat template; choose another template: {', '.join(get_args(TextTemplate))}."
            )

    def __call__(self, answer: Answer) -> Tokens:
        """The tokens of an answer that is `readable`. Raises DataError for turns that the chat template refuses."""
        return self.all([answer])[0]

    def all(self, answers: Sequence[Answer]) -> list[Tokens]:
        """The tokens of each, as one call of the tokenizer."""
        if not answers:
            return []
        laid_out = [self._chat(each) if self.layout.template == "chat" else self._text(each) for each in answers]
        texts = ["".join(piece for piece, _ in pieces) for pieces in laid_out]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        covering = _covering(encoded["offset_mapping"], laid_out)
        return [self._kept(ids, response_L) for ids, response_L in zip(encoded["input_ids"], covering, strict=True)]

    def _kept(self, ids: list[int], response_L: list[bool]) -> Tokens:
        first = [] if self.layout.template == "chat" or not self.layout.bos else self._beginning
        kept = slice(self.window) if self.layout.truncate == "right" else slice(-self.window, None)
        return Tokens((*first, *ids)[kept], (*[False] * len(first), *response_L)[kept])

    def _text(self, answer: Answer) -> list[Piece]:
        before, between = TEXTS[self.layout.template]  # type: ignore[index]  # a text template, as the caller saw
        pieces: list[Piece] = [(before, False)]
        for index, turn in enumerate(_messages(answer.prompt)):
            pieces += [("\n\n" if index else "", False), (_content(turn), self._counts(turn))]
        closing = self.tokenizer.eos_token or "" if self.layout.eos else ""
        return [*pieces, (between, False), (answer.response, True), (closing, True)]

    def _chat(self, answer: Answer) -> list[Piece]:
        turns = [*_messages(answer.prompt), {"role": "assistant", "content": answer.response}]
        first, *after = self._frame(turns)
        closing = self._closing(after[-1])
        pieces: list[Piece] = [(first, False)]
        for turn, template_text in zip(turns[:-1], after, strict=False):
            counts, end = self._counts(turn), len(closing) if template_text.startswith(closing) else 0
            pieces += [(_content(turn), counts), (template_text[:end], counts and self.layout.eos)]
            pieces.append((template_text[end:], False))
        return [*pieces, (answer.response, True), (closing if self.layout.eos else "", True)]

    def _counts(self, turn: Message) -> bool:
        return self.layout.turns == "all" and turn["role"] == "assistant"

    def _frame(self, turns: Sequence[Message]) -> list[str]:
        """What the chat template puts before, between and behind the contents of these turns."""
        key = tuple(repr(sorted((name, value) for name, value in turn.items() if name != "content")) for turn in turns)
        if key not in self._frames:
            self._frames[key] = self._rendered(turns)
        return self._frames[key]

    def _rendered(self, turns: Sequence[Message]) -> list[str]:
        # Private-use characters: no template has them, trims them or looks into them.
        marks = [f"\ue000{index}\ue001" for index in range(len(turns))]
        marked = [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(marked, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise DataError(
                f"the chat template of {self.name} refuses the turns {roles} ({error}); drop such rows, or choose "
                "another template."
            ) from error
        parts = re.split("\ue000\\d+\ue001", text)
        if re.findall("\ue000\\d+\ue001", text) != marks:
            raise ModelError(
                f"the chat template of {self.name} does not show each of {len(turns)} turns once, in order; choose "
                f"another template: {', '.join(get_args(TextTemplate))}."
            )
        return parts

    def _closing(self, template_text: str) -> str:
        found = self._special.search(template_text) if self._special else None
        return template_text[: found.end()] if found else self.tokenizer.eos_token or ""

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        words = sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words))) if words else None

    @cached_property
    def _beginning(self) -> list[int]:
        """Ids that the tokenizer itself puts before a text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _content(turn: Message) -> str:
    """Text, typed parts or None, as text."""
    return completion_text([{"role": "assistant", "content": turn.get("content")}])


def _covering(offsets_N: Sequence[Sequence[tuple[int, int]]], pieces_N: Sequence[Sequence[Piece]]) -> list[list[bool]]:
    """Of each text, which tokens cover a character of a piece that counts; the texts as one, end to end, for speed.

    A token begins where the one before it ended, at the latest: byte-level tokenizers leave the space before a word,
    or a token of spaces alone, out of their offsets.
    """
    sizes_N = np.array([sum(len(text) for text, _ in pieces) for pieces in pieces_N])
    lengths_N = np.array([len(offsets) for offsets in offsets_N])
    begins_L = np.repeat(np.cumsum(sizes_N) - sizes_N, lengths_N)
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(offsets_N)), dtype=np.int64, count=2 * lengths_N.sum())
    starts_L, ends_L = flat.reshape(-1, 2).T + begins_L
    before_L = np.maximum(np.concatenate([[0], ends_L])[: len(ends_L)], begins_L)
    starts_L = np.minimum(starts_L, before_L)
    kept = [(len(text), len(text) * counts) for pieces in pieces_N for text, counts in pieces if text]
    ends_P, counted_P = np.cumsum([(0, 0), *kept], axis=0).T
    # Characters that count before a place: linear inside a piece.
    covers_L = np.interp(ends_L, ends_P, counted_P) > np.interp(starts_L, ends_P, counted_P)
    return [part.tolist() for part in np.split(covers_L, np.cumsum(lengths_N)[:-1])]
