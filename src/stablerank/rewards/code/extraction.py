"""Which part of a completion is its program? The last closed fenced block that is marked as Python.

Without one that is marked, the last closed block without a mark. A block that never closes was cut off and does not
count. One pass over the lines, so linear in any text.

Left out on purpose: code without a fence, and other languages.
"""

import re

_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]{0,20})")
_PYTHON = {"python", "py", "python3"}


def python_code(completion: str) -> str | None:
    """The program of a completion, or None."""
    marked: str | None = None
    unmarked: str | None = None
    fence, language, body = "", "", list[str]()
    for line in completion.split("\n"):
        found = _FENCE.match(line)
        if not fence and found:
            fence, language, body = found[1], found[2].lower(), []
        elif fence and found and found[1].startswith(fence) and not line[found.end() :].strip() and not found[2]:
            code = "\n".join(body)
            marked = code if language in _PYTHON else marked
            unmarked = code if not language else unmarked
            fence = ""
        elif fence:
            body.append(line)
    return unmarked if marked is None else marked
