"""The spectral condition as text: a line a kind of block, what it means in plain words, and the route of a recipe."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from statistics import median

from stablerank.probes.spectral_condition import BlockCondition

WIDTH = 100
HEADS = ("matrices", "nr of gradient", "st of input", "ratio", "spectral", "strong")


def condition_text(blocks: Sequence[BlockCondition], *, every_block: bool = False) -> str:
    """Lines of at most 100 columns but for names; ``every_block``: one a block, with its own advice."""
    return "\n\n".join([_table(blocks), *([_each(blocks)] if every_block else []), *_advice(blocks)])


def by_kind(blocks: Iterable[BlockCondition]) -> dict[str, list[BlockCondition]]:
    """The blocks of each module name, over layers, in the model's order."""
    kinds: dict[str, list[BlockCondition]] = {}
    for block in blocks:
        kinds.setdefault(block.module, []).append(block)
    return kinds


def _table(blocks: Sequence[BlockCondition]) -> str:
    kinds = by_kind(blocks)
    width = max(len("block"), *map(len, kinds))
    lines = [f"{'block':<{width}}" + "".join(f"{head:>15}" for head in HEADS)]
    for kind, members in kinds.items():
        sides = [
            _median(getattr(block, name) for block in members) for name in ("nuclear_rank", "stable_rank", "ratio")
        ]
        votes = [sum(block.favours == "spectral" for block in members), sum(block.is_strong for block in members)]
        cells = [str(len(members)), *sides, *map(str, votes)]
        lines.append(f"{kind:<{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join([*lines, "medians over layers; strong: the realised decrease, too, must be larger (ratio 2)"])


def _each(blocks: Sequence[BlockCondition]) -> str:
    names = [block.module if block.layer is None else f"{block.layer} {block.module}" for block in blocks]
    return "\n".join(_wrapped(f"{name}: {block.advice}") for name, block in zip(names, blocks, strict=True))


def _advice(blocks: Sequence[BlockCondition]) -> list[str]:
    parts = {
        verdict: [
            kind for kind, members in by_kind(blocks).items() if all(block.favours == verdict for block in members)
        ]
        for verdict in ("spectral", "euclidean", "undecided")
    }
    mixed = [kind for kind in by_kind(blocks) if not any(kind in kinds for kinds in parts.values())]
    sentences = {
        "Try spectral steps (Muon) on": parts["spectral"],
        "Leave to AdamW": parts["euclidean"],
        "Layers disagree about": mixed,
        "Not decided": parts["undecided"],
    }
    told = [_wrapped(f"{what}: {', '.join(kinds)}.") for what, kinds in sentences.items() if kinds]
    if parts["spectral"]:
        told.append(f"In a recipe: 'optimiser.route=[{', '.join(parts['spectral'])}]'")
    told.append(
        _wrapped(
            "This compares what one exact polar step promises with what one step of plain descent does, at this point "
            "and on these texts. Muon has momentum, AdamW its own scaling: measure before you believe it."
        )
    )
    return told


def _median(values: Iterable[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return f"{median(finite):.2f}" if finite else "-"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
