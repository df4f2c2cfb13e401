"""Build the paper, as a PDF and as an HTML page: `python scripts/make_paper.py [FOLDER]`, by default into ``build/``.

`paper/paper.typ` reads every number from a file of results when it is built. `typed_numbers` finds what somebody typed
instead: digits in prose, wherever prose stands, and calls of functions that could print a number from nowhere.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typst

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "paper" / "paper.typ"
READING = {
    *("number", "interval", "found", "claim", "decision", "count", "verdicts", "judged", "chosen", "arxiv"),
    *("sine-loss", "sine-seeds", "sine-verdict", "bytes-saved"),
}
"""Functions of values.typ, which print what a file holds."""
HARMLESS = {"figure", "image", "title"}
SETTINGS = re.compile(r"(?m)^#(set|show|let|import)\b.*$|(?m:^\s*//.*$)|\$[^$]*\$")
"""Lines that print nothing, comments, and formulas."""
HEAD = """<head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
:root { color-scheme: light dark; }
body { font: 17px/1.6 Georgia, "Liberation Serif", serif; max-width: 46rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
table { font: 14px/1.4 system-ui, "Liberation Sans", sans-serif; border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #8885; padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
figure { margin: 2rem 0; overflow-x: auto; } figcaption { font-size: .85rem; margin-top: .5rem; }
img { max-width: 100%; background: #fff; }
</style>
"""
_CALL = re.compile(r"#([\w-]+)")


def typed_numbers(text: str) -> list[str]:
    """What stands in the text without a source, in order: numbers with what follows them, and functions by name."""
    return list(_Scanner(SETTINGS.sub("", text)).prose())


class _Scanner:
    """Walks markup and, inside calls, only the content blocks, which are markup again."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def prose(self, end: str = "") -> Iterator[str]:
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == end:
                return
            if here == "#" and (call := _CALL.match(self.text, self.at)):
                self.at = call.end()
                if call[1] not in READING | HARMLESS:
                    yield f"#{call[1]}"
                yield from self._arguments()
            elif here.isdigit():
                start = self.at
                while self.at < len(self.text) and re.match(r"[\d.,]", self.text[self.at]):
                    self.at += 1
                yield self.text[start : start + 30].split("\n")[0]
            else:
                self.at += 1

    def _arguments(self) -> Iterator[str]:
        while self.text[self.at : self.at + 1] in ("(", "["):
            opened = self.text[self.at]
            self.at += 1
            yield from self.prose("]") if opened == "[" else self._code()
            self.at += 1

    def _code(self) -> Iterator[str]:
        while self.at < len(self.text) and self.text[self.at] != ")":
            here = self.text[self.at]
            self.at += 1
            if here == '"':
                self.at = self.text.index('"', self.at) + 1
            elif here == "[":
                yield from self.prose("]")
                self.at += 1
            elif here == "(":
                yield from self._code()
                self.at += 1


def build(folder: Path) -> list[Path]:
    """Write ``paper.pdf`` and ``paper.html`` into a folder; a value without a source is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf, page = folder / "paper.pdf", folder / "paper.html"
    pdf.write_bytes(typst.compile(str(SOURCE), root=str(ROOT), format="pdf"))
    page.write_text(typst.compile(str(SOURCE), root=str(ROOT), format="html").decode().replace("<head>", HEAD, 1))
    return [pdf, page]


def main() -> None:
    """Check, then build."""
    if found := typed_numbers(SOURCE.read_text()):
        raise SystemExit(f"{SOURCE.name} has numbers without a source: {'; '.join(found)}. Read them from a result.")
    for path in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"):
        print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
