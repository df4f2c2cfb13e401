"""Take the Markdown out of a text and leave its words.

Headings, quotes and rules lose their marks, lists their bullets (numbers stay: they may be content), emphasis and
inline code their delimiters, links their targets, code fences their lines. Code inside a fence stays as it is.

Left out on purpose: tables and HTML.
"""

import re

_FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)^[ \t]*\1[ \t]*(?:\n|$)", re.MULTILINE | re.DOTALL)
_LINE_MARKS = (
    (re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*(?:\n|$)", re.MULTILINE), ""),
    (re.compile(r"^([ \t]*)[-*+][ \t]+", re.MULTILINE), r"\1"),
)
_INLINE_MARKS = (
    (re.compile(r"!?\[([^\]\n]+)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r"(\*\*|__)(?=\S)([^\n]+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
)


def strip_markdown(text: str) -> str | None:
    """The text without Markdown (module header); None where it has none, or nothing else."""
    parts, last = [], 0
    for fenced in _FENCED.finditer(text):
        parts += [_plain(text[last : fenced.start()]), fenced[2]]
        last = fenced.end()
    stripped = "".join([*parts, _plain(text[last:])])
    return stripped if stripped != text and stripped.strip() else None


def _plain(text: str) -> str:
    for pattern, kept in (*_LINE_MARKS, *_INLINE_MARKS):
        text = pattern.sub(kept, text)
    return text
