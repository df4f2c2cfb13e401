r"""Steps of a completion in token space: what each says, and on which token it became final.

Legend: T tokens of a completion.

A step is the text between separators. It closes on the token that made it final:

- the token that completes its separator, whatever else that token holds (usual tokenisers have tokens such as
  ``".\n\n"`` and ``"\nSo"``);
- the end token, for a last step without separator.

Up to this token the policy could still have changed the step, so a deposit any earlier would not credit the choice to
end it: under a return to go, stopping after the last step would never be credited.

- A blank step is none: it gets no score, and its tokens belong to the step that follows.
- Steps that one token closes together are one step, since the policy chose them at once.
- A last step that neither separator nor end token closed was cut by the length limit. It is unfinished, and left out.
- Special tokens say nothing; a last token that is special counts as the end token.

Left out on purpose: splitting by sentences or by confidence, and models that mark steps with a token of their own.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from stablerank.rewards.process.offsets import token_ends

REMEMBERED_WINDOWS = 2**16


@dataclass(frozen=True)
class Step:
    """``text`` without surrounding white space, and the index in the completion of the token that closes it."""

    text: str
    closing: int


@dataclass(frozen=True)
class Segmented:
    """The finished steps in order, closing on ever later tokens, and whether an unfinished one follows them."""

    steps: tuple[Step, ...]
    is_truncated: bool


class Segmenter:
    """Splits the completions of a policy by its tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: str = "\n") -> None:
        def decode(window: tuple[int, ...]) -> str:
            text: str = tokenizer.decode(list(window), clean_up_tokenization_spaces=False)
            return text

        self.separator = separator
        self._decode = lru_cache(maxsize=REMEMBERED_WINDOWS)(decode)
        added = tokenizer.added_tokens_decoder.items()
        # Decoding skips more than the named special tokens: Llama 3 ends its turns with one that has no name.
        self._special = {*tokenizer.all_special_ids, *(token for token, form in added if form.special)}

    def __call__(self, ids_T: Sequence[int]) -> Segmented:
        """The steps of one completion, its end token included if there is one."""
        spoken = [at for at, token in enumerate(ids_T) if token not in self._special]
        text, ends = token_ends(tuple(ids_T[at] for at in spoken), self._decode)
        pieces, rest = [], 0
        for start, stop in self._terminated(text):
            rest = stop + len(self.separator)
            pieces.append(_Piece(start, stop, spoken[bisect_left(ends, rest)]))
        has_ended = bool(ids_T) and ids_T[-1] in self._special
        if has_ended:
            pieces.append(_Piece(rest, len(text), len(ids_T) - 1))
        return Segmented(_steps(text, pieces), is_truncated=not has_ended and bool(text[rest:].strip()))

    def _terminated(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each stretch of text that a separator follows."""
        start = 0
        while (stop := text.find(self.separator, start)) >= 0:
            yield start, stop
            start = stop + len(self.separator)


@dataclass(frozen=True)
class _Piece:
    """``text[start:stop]`` between separators, final on the token ``closing``; it may be blank."""

    start: int
    stop: int
    closing: int


def _steps(text: str, pieces: Sequence[_Piece]) -> tuple[Step, ...]:
    said = [piece for piece in pieces if text[piece.start : piece.stop].strip()]
    together = [list(group) for _, group in groupby(said, key=lambda piece: piece.closing)]
    return tuple(Step(text[group[0].start : group[-1].stop].strip(), group[0].closing) for group in together)
