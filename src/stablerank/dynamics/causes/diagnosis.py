"""What a rule about a run may say, and what a rule is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stablerank.dynamics.causes.facts import Facts

Severity = Literal["problem", "warning"]


@dataclass(frozen=True)
class Diagnosis:
    """One cause, in words for somebody who has to change something."""

    cause: str
    """Name of the cause, one of `explain.CAUSES`."""
    sentence: str
    """What happened and why; where the rows cannot tell two causes apart it says "either ... or ..."."""
    evidence: str
    """The numbers, and the rule that they pass."""
    remedy: str
    """What to change."""
    first_step: int | None
    """The first step at which it shows; None where no single step shows it."""
    severity: Severity


@dataclass(frozen=True)
class Cause:
    """A rule with its name.

    ``needs`` lists what the rule reads: of every group at least one name must be on record. ``explains`` are causes
    that a found one accounts for: they are its consequences, or its symptoms under another name.
    """

    name: str
    title: str
    rule: Callable[[Facts], Diagnosis | None]
    needs: tuple[tuple[str, ...], ...]
    explains: tuple[str, ...] = ()

    def missing(self, facts: Facts) -> tuple[tuple[str, ...], ...]:
        """The groups of which nothing is on record."""
        return tuple(group for group in self.needs if not any(facts.knows(name) for name in group))
