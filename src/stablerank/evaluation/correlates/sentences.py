"""Sentences, tokens and words of a text by plain rules, without a model or a dictionary.

Legend: S sentences.

- A *sentence* ends at a line break, or behind a run of ``.``, ``!``, ``?`` or ``…`` (with closing quotes or brackets)
  that white space follows. It does not end behind an abbreviation of `ABBREVIATIONS`, a single capital letter
  (``J. Smith``) or a number that opens a line (``1. First``). Pieces without a letter or digit, such as a code fence or
  a rule of dashes, are no sentences.
- A *token* is a run of letters and digits, or any other single character that is not white space.
- A *word* is a run of letters, with apostrophes inside.

The source (arXiv 2512.02807, appendix F.3) splits with NLTK and "a regex-based fallback" and does not say what a token
is. Every rule here is our choice; NLTK would not end a sentence at a line break, so a list is one long sentence there.

Left out on purpose: languages that do not end sentences with these marks.
"""

import re

ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "eg", "e.g", "ie", "i.e", "cf", "fig", "eq"),
        *("vol", "al", "approx", "dept", "inc", "ltd", "co", "jan", "feb", "aug", "sep", "sept", "oct", "nov", "dec"),
    ]
)
_LINE = re.compile(r"[^\r\n]+")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)")
_LAST_WORD = re.compile(r"(\S+?)[.!?…]+[\"'”’)\]]*$")
_NUMBERING = re.compile(r"\W*\d+\.")
_TOKEN = re.compile(r"[^\W_]+|[^\s]")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

Span = tuple[int, int]


def sentence_spans(text: str) -> list[Span]:
    """Start and end of every sentence, in order, without the white space around it."""
    spans = [span for line in _LINE.finditer(text) for span in _of_line(text, line.start(), line.end())]
    return [(start, end) for start, end in spans if any(character.isalnum() for character in text[start:end])]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text (module header)."""
    return [text[start:end] for start, end in sentence_spans(text)]


def tokens_of(text: str) -> list[str]:
    """The tokens of a text in small letters (module header)."""
    return _TOKEN.findall(text.casefold())


def words_of(text: str) -> list[str]:
    """The words of a text in small letters (module header)."""
    return _WORD.findall(text.casefold())


def _of_line(text: str, start: int, end: int) -> list[Span]:
    ends = [match.end() for match in _END.finditer(text, start, end) if _closes(text[start : match.end()])]
    return [_stripped(text, *span) for span in zip([start, *ends], [*ends, end], strict=True)]


def _closes(so_far: str) -> bool:
    """Whether the mark at the end of a line so far ends a sentence."""
    last = _LAST_WORD.search(so_far)
    if last is None or _NUMBERING.fullmatch(so_far):
        return False
    word = last[1].lstrip("\"'“‘([")
    return word.casefold() not in ABBREVIATIONS and not (len(word) == 1 and word.isupper() and word.isalpha())


def _stripped(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
