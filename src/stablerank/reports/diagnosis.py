"""The health of a run as the terminal, the page and the JSON tell it: one record, read by every rule that there is.

Beside the causes (dynamics/causes) it holds the alarms that the run raised, the steps without any learning signal
(dynamics/zero.py) and the chain of a collapse (dynamics/chain.py), each as sentences.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stablerank.dynamics.causes.explain import Diagnoses, explain
from stablerank.dynamics.chain import chain_of, told
from stablerank.dynamics.signals import signals_of_record
from stablerank.dynamics.zero import zeros_of_record
from stablerank.runs.folder import RunFolder
from stablerank.runs.record import Row, RunRecord, read_record

WRITERS = {"stablerank": "a run of stablerank", "trl": "a run of TRL"}


@dataclass(frozen=True)
class Health:
    """Everything that is said of a run."""

    record: RunRecord
    diagnoses: Diagnoses
    alarms: tuple[Row, ...]
    """Rows of ``alarms.jsonl``; empty where there is none."""
    zeros: tuple[str, ...]
    """Stretches of steps that taught nothing, and why."""
    chain: str
    """The links of a collapse by length; empty without a collapse."""

    @property
    def alarm_sentences(self) -> tuple[str, ...]:
        """The alarms, a sentence each."""
        return tuple(f"step {row['step']}: {row['sentence']} {row['remedy']}" for row in self.alarms)

    @property
    def subject(self) -> str:
        """What was read, in one line."""
        steps = self.record.steps
        span = f", steps {steps[0]['step']} to {steps[-1]['step']}" if steps else ""
        rows = f"{len(steps)} logged step{'s' * (len(steps) != 1)}{span}"
        return f"{self.record.source}: {WRITERS[self.record.writer]}, {rows}."


def read_health(path: Path) -> Health:
    """Read a run and judge it.

    Raises:
        RunFolderError: there is no run, or one of its files is damaged.
    """
    return health_of(read_record(path), _alarms(path))


def health_of(record: RunRecord, alarms: tuple[Row, ...] = ()) -> Health:
    """Judge a record."""
    curve = [row for row in record.evaluations if row.get("phase") == "curve"]
    chain = chain_of(signals_of_record(record), curve)
    return Health(
        record,
        explain(record),
        alarms,
        tuple(zero.message for zero in zeros_of_record(record)),
        told(chain) if chain.kind != "none" else "",
    )


def _alarms(path: Path) -> tuple[Row, ...]:
    return tuple(RunFolder(path).alarms.rows()) if path.is_dir() else ()


def to_json(health: Health) -> dict[str, Any]:
    """Plain data, without a number that JSON does not have."""
    diagnoses = health.diagnoses
    return {
        "run": str(health.record.source),
        "writer": health.record.writer,
        "logged_steps": len(health.record.steps),
        "verdict": diagnoses.verdict,
        "problem": diagnoses.has_problem,
        "found": [asdict(diagnosis) for diagnosis in diagnoses.found],
        "consequences": [asdict(diagnosis) for diagnosis in diagnoses.consequences],
        "not_found": list(diagnoses.clear),
        "not_checked": [asdict(unchecked) for unchecked in diagnoses.unchecked],
        "story": list(diagnoses.story),
        "alarms": list(health.alarm_sentences),
        "zeros": list(health.zeros),
        "chain": health.chain,
    }
