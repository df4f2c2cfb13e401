"""The verdict of a study: computed from its lock and its results, and written as ``verdict.json``.

Contract: `verdict` checks the lock and every seal, judges every rule, and decides each hypothesis:

- confirmed: its rule holds, also after Holm's correction over all hypotheses of the plan;
- falsified: the interval excludes the claim;
- inconclusive: neither;
- killed: its kill rule held on the seeds that had been read by then (`stablerank.studies.killing`);
- invalid, all of them: something was tampered with, a cell failed, a trap's rule holds, a control's does not; a trap
  or control that cannot be judged has not done its work either.

While a cell is missing or stale every hypothesis is ``incomplete`` and no rule is judged: who sees numbers before the
last cell may stop when they please. The family that Holm corrects for is fixed by the plan; a killed hypothesis counts
in it with p = 1.

Left out on purpose: any way to pass over a trap, a seed or a cell.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stablerank.errors import DataError
from stablerank.runs.atomic import write_json
from stablerank.runs.strict_json import strict
from stablerank.studies.inference import Outcome, evaluate, holm
from stablerank.studies.killing import KillWatch
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import (
    Lock,
    LockError,
    foreign_results,
    read_lock,
    study_terms,
    verify_lock,
    verify_results,
)
from stablerank.studies.plan import Plan, load_plan
from stablerank.studies.results import Result, Table, read_results, tabulate
from stablerank.studies.rules import Rule
from stablerank.studies.staleness import stale
from stablerank.studies.tampering import Tampering

State = Literal["decided", "invalid", "incomplete"]
Decision = Literal["confirmed", "falsified", "inconclusive", "killed", "invalid", "incomplete"]
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Judged:
    """What one rule came to, and the results it came from, by path inside the study folder."""

    rule: str
    column: str
    outcome: Outcome
    files: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One hypothesis: ``rule`` is judged unless it was killed, ``kill`` only if it was.

    Both are None where nothing was judged. ``p_corrected`` is the rule's p after the correction that the plan states.
    """

    name: str
    claim: str
    decision: Decision
    rule: Judged | None = None
    p_corrected: float | None = None
    kill: Judged | None = None


@dataclass(frozen=True)
class Verdict:
    """A study, judged; ``problems`` says in whole sentences why it is invalid or incomplete."""

    question: str
    mode: str
    confidence: float
    correction: str
    lock: str | None
    state: State
    problems: tuple[str, ...]
    hypotheses: tuple[Finding, ...]
    traps: Mapping[str, Judged]
    controls: Mapping[str, Judged]


def verdict(folder: str | Path) -> Verdict:
    """Judge the study in ``folder`` and write ``verdict.json`` there.

    Raises:
        LockError: a confirmatory study that was never locked.
        RecipeError: no plan.
        DataError: a file among the results that is none.
    """
    study = StudyFolder(Path(folder))
    found = _judged_study(study)
    write_json(study.verdict_path, as_json(found))
    return found


def as_json(found: Verdict) -> dict[str, Any]:
    """Plain data in which an undefined number, or an unbounded one, is None."""
    plain: dict[str, Any] = strict(asdict(found))
    return plain


def _judged_study(study: StudyFolder) -> Verdict:
    if faults := verify_lock(study.path):
        return _unjudged(_locked_plan(study), None, "invalid", map(str, faults))
    terms = study_terms(study.path)
    results, faults = _counted_results(study, terms)
    if faults:
        return _unjudged(terms.plan, terms.sha256, "invalid", map(str, faults))
    old = stale(study, terms.plan, results)
    results = {name: result for name, result in results.items() if name not in old}
    watch = KillWatch(terms.plan)
    watch.look(results)
    unneeded = watch.unneeded_arms()
    cells = [cell.id for cell in terms.plan.cells() if cell.arm not in unneeded]
    if missing := [cell for cell in cells if cell not in results]:
        problem = (
            f"{len(missing)} of {len(cells)} cells have no result yet, the first is {missing[0]}; "
            f"`stablerank study run {study.path}` finishes them."
        )
        return _unjudged(terms.plan, terms.sha256, "incomplete", [problem])
    if failed := [cell for cell in cells if results[cell]["status"] != "done"]:
        return _unjudged(terms.plan, terms.sha256, "invalid", [_failure(results[cell]) for cell in failed])
    return _judged(terms, results, watch.killed)


def _locked_plan(study: StudyFolder) -> Plan:
    """The plan that was locked, or what stands in its place when the lock itself was edited."""
    try:
        return read_lock(study.path).plan
    except LockError:
        return load_plan(study.plan_path)


def _counted_results(study: StudyFolder, terms: Lock) -> tuple[Results, list[Tampering]]:
    """Every result, and what is wrong with those that do not count."""
    try:
        results = read_results(study.results_path)
    except DataError:
        if faults := verify_results(study.path):
            return {}, faults
        raise
    return results, foreign_results(terms, results)


def _unjudged(
    plan: Plan, lock: str | None, state: Literal["invalid", "incomplete"], problems: Iterable[str]
) -> Verdict:
    findings = (Finding(name, hypothesis.claim, state) for name, hypothesis in plan.hypotheses.items())
    return Verdict(*_heading(plan, lock), state, tuple(problems), tuple(findings), {}, {})


def _judged(terms: Lock, results: Results, killed: Mapping[str, tuple[int, ...]]) -> Verdict:
    plan, judge = terms.plan, _Judge(terms.plan, results)
    traps = {name: judge.final(rule) for name, rule in plan.traps.items()}
    controls = {name: judge.final(rule) for name, rule in plan.controls.items()}
    problems = (*_passing_traps(traps), *_failing_controls(controls))
    rules = {name: judge.final(claim.rule) for name, claim in plan.hypotheses.items() if name not in killed}
    p_values = [rules[name].outcome.p if name in rules else math.nan for name in plan.hypotheses]
    corrected = holm(p_values) if plan.correction == "holm" else p_values
    findings = []
    for (name, hypothesis), p in zip(plan.hypotheses.items(), corrected, strict=True):
        rule = rules.get(name)
        kill = judge.early(hypothesis.kill, killed[name]) if hypothesis.kill and name in killed else None
        decision = "invalid" if problems else _decision(rule, p, 1 - plan.confidence)
        findings.append(Finding(name, hypothesis.claim, decision, rule, p if rule else None, kill))
    state: State = "invalid" if problems else "decided"
    return Verdict(*_heading(plan, terms.sha256), state, problems, tuple(findings), traps, controls)


class _Judge:
    """Judges rules on the results of their arms."""

    def __init__(self, plan: Plan, results: Results) -> None:
        self.plan, self.results, self.table = plan, results, tabulate(results.values())

    def final(self, rule: Rule) -> Judged:
        """On every seed of the plan."""
        return self._judged(rule, self.table, self.plan.seeds)

    def early(self, rule: Rule, seeds: tuple[int, ...]) -> Judged:
        """On the seeds that had been read when a kill rule held."""
        table = tabulate(self.results[f"{arm}--{seed}"] for arm in rule.arms_read for seed in seeds)
        return self._judged(rule, table, seeds)

    def _judged(self, rule: Rule, table: Table, seeds: tuple[int, ...]) -> Judged:
        files = (f"results/{arm}--{seed}.json" for arm in rule.arms_read for seed in sorted(seeds))
        return Judged(rule.kind, rule.column, evaluate(rule, table, self.plan.confidence), tuple(files))


def _decision(rule: Judged | None, p_corrected: float, alpha: float) -> Decision:
    if rule is None:
        return "killed"
    if rule.outcome.holds and p_corrected <= alpha:
        return "confirmed"
    return "falsified" if rule.outcome.contradicted else "inconclusive"


def _heading(plan: Plan, lock: str | None) -> tuple[str, str, float, str, str | None]:
    return plan.question, plan.mode, plan.confidence, plan.correction, lock


def _failure(result: Result) -> str:
    reason = str(result["error"]).rstrip(".")
    return f"Cell {result['cell']} failed ({reason}); mend the cause and run the study again, or lock a new one."


def _passing_traps(traps: Mapping[str, Judged]) -> Iterator[str]:
    for name, trap in traps.items():
        if trap.outcome.holds:
            yield f"Trap {name} holds and must not: the study would confirm what is false."
        elif not trap.outcome.is_defined:
            yield f"Trap {name} cannot be judged ({trap.outcome.method}), so nothing shows that the study can fail."


def _failing_controls(controls: Mapping[str, Judged]) -> Iterator[str]:
    for name, control in controls.items():
        if not control.outcome.holds:
            why = (
                "does not hold and must"
                if control.outcome.is_defined
                else f"cannot be judged ({control.outcome.method})"
            )
            yield f"Control {name} {why}: the study would miss what is true."
