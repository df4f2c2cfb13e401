"""Do the documents still tell the truth? `python scripts/check_docs.py [--no-run]`, or `make docs`.

Checked in README.md, CONTRIBUTING.md, CHANGELOG.md and docs/*.md: relative links and images lead to a file inside the
repository (and an existing heading); Python blocks compile; blocks under the comment ``<!-- run -->`` run, each by
itself in an empty folder; every `stablerank ...` command has verbs and options that exist; every recipe named exists.
One line a problem, ``file:line: message``; exit code 1 if there is any.

Left out on purpose: links to the web, which fail for reasons of their own; commands in the changelog, which tells of
the past.
"""

import argparse
import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.main import get_command

from stablerank.cli.app import app

NEEDED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
HISTORY = "CHANGELOG.md"
RUN_MARK = "<!-- run -->"
RUN_SECONDS = 120
SHELLS = ("bash", "sh", "shell", "console")
HELP = ("-h", "--help")
_WEB = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_HTML_LINK = re.compile(r"""\b(?:src|href)\s*=\s*["']([^"']+)["']""")
_COMMAND = re.compile(r"(?:^|[\s/$(])stablerank[ \t]+((?:\\\n|[^#|;&)\n])+)")
_NOT_A_COMMAND = re.compile(r"(?:^|[ \t])#.*$|^.*\bpip install\b.*$", re.MULTILINE)
_VERB = re.compile(r"[a-z][a-z-]*")
_RECIPE = re.compile(r"(?<![\w/])recipes/[\w./-]+\.ya?ml")


@dataclass(frozen=True)
class Problem:
    """One message and the place it is about."""

    document: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Document:
    """One Markdown file of the repository at ``root``."""

    root: Path
    name: str

    @cached_property
    def text(self) -> str:
        return (self.root / self.name).read_text()

    @cached_property
    def blocks(self) -> list[Token]:
        """Markdown-it's tokens; those that matter here know their lines."""
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    def spans(self) -> Iterator[tuple[int, Token]]:
        """Every inline token with its line."""
        for block in self.blocks:
            line = line_of(block)
            for token in block.children or []:
                yield line, token
                line += token.type in ("softbreak", "hardbreak")

    def anchors(self) -> set[str]:
        """What GitHub calls the headings."""
        titles = (
            after.content
            for block, after in zip(self.blocks, self.blocks[1:], strict=False)
            if block.type == "heading_open"
        )
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    def fences(self, *languages: str) -> Iterator[tuple[int, str, bool]]:
        """Line of the first line of code, code, and whether it is marked to be run."""
        before = ""
        for block in self.blocks:
            if block.type == "fence" and block.info.split()[:1] and block.info.split()[0] in languages:
                yield line_of(block) + 1, block.content, before == RUN_MARK
            before = block.content.strip()

    def problem(self, line: int, message: str) -> Problem:
        return Problem(self.name, line, message)


def line_of(block: Token) -> int:
    return block.map[0] + 1 if block.map else 1


def documents(root: Path) -> list[Document]:
    """The needed files that exist, then docs/*.md."""
    needed = [root / name for name in NEEDED if (root / name).exists()]
    return [Document(root, str(path.relative_to(root))) for path in (*needed, *sorted(root.glob("docs/**/*.md")))]


def problems(root: Path, run: bool) -> list[Problem]:
    """Everything that is wrong with the documents of the repository at ``root``."""
    found = [Problem(name, 1, "is missing") for name in NEEDED if not (root / name).exists()]
    for document in documents(root):
        found += [*broken_links(document), *broken_python(document), *missing_recipes(document)]
        found += broken_commands(document) if document.name != HISTORY else []
        found += failing_blocks(document) if run else []
    return found


# --- links -------------------------------------------------------------------------------------------------------


def broken_links(document: Document) -> Iterator[Problem]:
    for line, target in links(document):
        if not _WEB.match(target) and (fault := link_fault(document, target)):
            yield document.problem(line, f"link to {target!r}: {fault}")


def links(document: Document) -> Iterator[tuple[int, str]]:
    for line, token in document.spans():
        if token.type in ("link_open", "image"):
            yield line, str(token.attrs.get("href") or token.attrs.get("src"))
        elif token.type == "html_inline":
            yield from ((line, target) for target in _HTML_LINK.findall(token.content))
    for block in document.blocks:
        if block.type == "html_block":
            yield from ((line_of(block), target) for target in _HTML_LINK.findall(block.content))


def link_fault(document: Document, target: str) -> str:
    path, _, anchor = unquote(target).partition("#")
    place = ((document.root / document.name).parent / path).resolve() if path else document.root / document.name
    if not place.is_relative_to(document.root.resolve()):
        return "leads out of the repository"
    if not place.exists():
        return "no such file"
    if anchor and place.suffix == ".md":
        there = Document(document.root.resolve(), str(place.resolve().relative_to(document.root.resolve())))
        return "" if anchor in there.anchors() else f"no heading #{anchor} there"
    return ""


# --- Python ------------------------------------------------------------------------------------------------------


def broken_python(document: Document) -> Iterator[Problem]:
    for line, code, _ in document.fences("python"):
        try:
            ast.parse(code)
        except SyntaxError as error:
            yield document.problem(line - 1 + (error.lineno or 1), f"the Python block does not compile: {error.msg}")


def failing_blocks(document: Document) -> Iterator[Problem]:
    for line, code, is_marked in document.fences("python"):
        if is_marked and (fault := run_fault(code)):
            yield document.problem(line, f"the Python block fails: {fault}")


def run_fault(code: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"it takes longer than {RUN_SECONDS} seconds"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


# --- commands and recipes ----------------------------------------------------------------------------------------


def broken_commands(document: Document) -> Iterator[Problem]:
    for line, words in commands(document):
        if fault := command_fault(words):
            yield document.problem(line, f"`stablerank {' '.join(words)}`: {fault}")


def commands(document: Document) -> Iterator[tuple[int, list[str]]]:
    for line, token in document.spans():
        if token.type == "code_inline" and token.content.startswith("stablerank "):
            yield line, token.content.split()[1:]
    for first, code, _ in document.fences(*SHELLS):
        code = _NOT_A_COMMAND.sub("", code)
        for found in _COMMAND.finditer(code):
            yield first + code.count("\n", 0, found.start(1)), found[1].replace("\\\n", " ").split()


def command_fault(words: list[str]) -> str:
    """Follow the words down the verbs of the command line; a placeholder such as ``...`` or ``VERB`` ends the walk."""
    node, trail = get_command(app), "stablerank"
    for word in (word.strip("[]") for word in words):
        if word.startswith("-"):
            known = {name for option in node.params for name in (*option.opts, *option.secondary_opts)} | {*HELP}
            if word.partition("=")[0] not in known:
                return f"`{trail}` has no option {word.partition('=')[0]}"
        elif verbs := getattr(node, "commands", None):
            if not _VERB.fullmatch(word):
                return ""
            if word not in verbs:
                return f"`{trail}` has no verb {word!r}, only {', '.join(sorted(verbs))}"
            node, trail = verbs[word], f"{trail} {word}"
    return ""


def missing_recipes(document: Document) -> Iterator[Problem]:
    for line, text in enumerate(document.text.split("\n"), 1):
        for path in _RECIPE.findall(text):
            if not (document.root / path).exists():
                yield document.problem(line, f"no recipe {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="compile the marked Python blocks only")
    root = Path(__file__).parents[1]
    found = problems(root, run=not parser.parse_args().no_run)
    for problem in found:
        print(problem)
    if found:
        raise SystemExit(1)
    print(f"{len(documents(root))} documents: links, Python blocks, commands and recipes hold")


if __name__ == "__main__":
    main()
