"""When a hypothesis dies: its kill rule is read after each round of seeds, and holds.

Contract: a round is complete when every arm that the kill rule reads has finished one seed more, in ascending order;
the rule is read on the rounds complete so far and on nothing else. Who is killed is thus a function of the results
alone: the same for every number of jobs, after every crash, and whatever else has finished by chance.

Reading a rule again and again makes it likelier to hold once. That only ever ends a hypothesis early; nothing is
confirmed by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from stablerank.studies.plan import Plan
from stablerank.studies.results import Result, Table, tabulate
from stablerank.studies.rules import Rule


class KillWatch:
    """Reads each kill rule once a round; call `look` whenever results came in."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.seeds = plan, sorted(plan.seeds)
        self.killed: dict[str, tuple[int, ...]] = {}
        """Each dead hypothesis, with the seeds that had been read when its kill rule held."""
        self._rules = {name: claim.kill for name, claim in plan.hypotheses.items() if claim.kill is not None}
        self._rounds_read = dict.fromkeys(self._rules, 0)

    def look(self, results: Mapping[str, Result]) -> None:
        """Read every living hypothesis's kill rule on each round that is newly complete; ``results`` by cell."""
        for name, rule in self._rules.items():
            complete = self._complete_rounds(rule, results)
            if name not in self.killed and complete > self._rounds_read[name]:
                self._read(name, rule, complete, results)

    def unneeded_arms(self) -> frozenset[str]:
        """Arms that dead hypotheses alone were waiting for; an arm that no rule ever named is not one of them."""
        if not self.killed:
            return frozenset()
        read: dict[bool, set[str]] = {True: set(), False: set()}
        for key, rule in self.plan.rules():
            section, name, *_ = key.split(".")
            read[section == "hypotheses" and name in self.killed].update(rule.arms_read)
        return frozenset(read[True] - read[False])

    def _complete_rounds(self, rule: Rule, results: Mapping[str, Result]) -> int:
        for rounds, seed in enumerate(self.seeds):
            cells = [results.get(f"{arm}--{seed}") for arm in rule.arms_read]
            if any(result is None or result["status"] != "done" for result in cells):
                return rounds
        return len(self.seeds)

    def _read(self, name: str, rule: Rule, complete: int, results: Mapping[str, Result]) -> None:
        # Statistics take a second to load, which a study without kill rules need not wait for.
        from stablerank.studies.inference import evaluate

        cells = [f"{arm}--{seed}" for seed in self.seeds[:complete] for arm in rule.arms_read]
        table = tabulate(results[cell] for cell in cells)
        for rounds in range(self._rounds_read[name] + 1, complete + 1):
            seeds = self.seeds[:rounds]
            if evaluate(rule, _of_seeds(table, seeds), self.plan.confidence).holds:
                self.killed[name] = tuple(seeds)
                break
        self._rounds_read[name] = complete


def killed_hypotheses(plan: Plan, results: Mapping[str, Result]) -> dict[str, tuple[int, ...]]:
    """Every dead hypothesis, with the seeds that had been read when its kill rule held; ``results`` by cell."""
    watch = KillWatch(plan)
    watch.look(results)
    return watch.killed


def _of_seeds(table: Table, seeds: Sequence[int]) -> Table:
    rows = np.flatnonzero(np.isin(table.seed_R, seeds))
    return Table(*(getattr(table, column.name)[rows] for column in fields(table)))
