"""A run as rows, whoever wrote it: a run folder of ours, or what TRL's trainers leave behind.

Contract: `read_record` reads; what was not recorded is empty. Rows are those of the log, one a
logged step, with ``step`` and numbers under TRL's own keys (and ours beside them). A run that is still going, or was
killed, reads as far as it got. Rows stand in order of their step; rows of one step are merged, and what was written
later wins (a resumed run repeats steps). A number that is none stays NaN or infinite, bare or spelled as a string.

TRL's files are those of ``trl`` 1.16: ``trainer_state.json``, and with ``log_completions`` one
``completions/completions_STEP.parquet`` a logged step.

Left out on purpose: ``training_args.bin``, which is a pickle, so the settings of a plain TRL run stay unknown; what
TRL's ``eval_*`` rows say of rewards, which are those of samples and no pass rate.

Legend: S logged steps, K reward functions.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stablerank.errors import RunFolderError
from stablerank.runs.folder import RunFolder

Row = Mapping[str, Any]
Floats = NDArray[np.floating[Any]]

STATE = "trainer_state.json"
_SPELLED = {"nan", "inf", "infinity"}


@dataclass(frozen=True)
class TrainingCompletion:
    """One completion that the run trained on; ``reward`` and ``advantage`` are NaN where there is none."""

    step: int
    group: int
    text: str
    reward: float
    """The weighted sum over the reward functions that scored it; `read_record` says how TRL's is found."""
    advantage: float
    tokens: int
    """Tokens of the completion; 0 where the writer kept text alone."""
    truncated: bool
    """Whether it was cut at the limit; False where the writer kept text alone, which cannot tell."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that rules about a run may read."""

    source: Path
    writer: Literal["stablerank", "trl"]
    settings: Row
    """The resolved recipe of a run of ours; empty for TRL's."""
    steps: tuple[Row, ...]
    """Log rows in order of their ``step``."""
    evaluations: tuple[Row, ...]
    """Held-out evaluations: ``step``, ``phase``, ``pass_at_1``, ``low``, ``high``, ``mean_length``, ``truncated``."""
    completions: tuple[TrainingCompletion, ...]
    """In order of step and group; empty where they were not kept."""
    losses: tuple[Row, ...] = ()
    """Of a run of ours the held-out losses of its curve; of TRL's the whole log, with the rows of its evaluations."""


def read_record(path: Path) -> RunRecord:
    """Read a run folder of ours; or, of TRL's, an output folder, a checkpoint or a ``trainer_state.json``.

    An output folder is read from its newest checkpoint or from its own state, whichever got further. Its completions
    are those of the steps that the state knows and that generated: TRL writes a batch again at every step that reuses
    it. A group of TRL's is a run of rows with one prompt. Their reward is the weighted sum of TRL's reward columns
    that scored. Their weights, which TRL keeps in its pickle only, are solved from the log, whose ``reward`` is the
    weighted sum of its ``rewards/NAME/mean``; where that does not tell (too few steps, means that do not vary,
    functions that left completions out), they count as 1 each, TRL's default.

    Raises:
        RunFolderError: there is no run, or one of its files is damaged.
    """
    if (path / "manifest.json").exists():
        return _read_ours(path)
    return _read_trl(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise RunFolderError(
            f"{path} cannot be read ({' '.join(repr(error).split())[:120]}); mend it, or move it away to read the rest."
        ) from error


def _read_ours(path: Path) -> RunRecord:
    folder = RunFolder(path)
    manifest = folder.manifest()
    with _whole(folder.metrics.path):
        steps = _by_step(folder.metrics.rows())
    with _whole(folder.evaluations.path):
        newest = {(int(row["step"]), row["phase"]): row for row in folder.evaluations.rows()}
        # A run with a held-out loss answers nothing, and rules about accuracy have nothing to read there.
        answered = [row for row in newest.values() if "pass_at_1" in row]
        evaluations = tuple(sorted(answered, key=lambda row: int(row["step"])))
        losses = tuple(row for (_, phase), row in sorted(newest.items()) if phase == "curve" and "loss" in row)
    with _whole(folder.rollouts.folder):
        completions = tuple(_our_completions(folder.rollouts.read()))
    return RunRecord(path, "stablerank", manifest["recipe"], steps, evaluations, completions, losses)


def _our_completions(table: pa.Table | None) -> Iterator[TrainingCompletion]:
    if table is None or not table.num_rows:
        return
    names = ["step", "group", "row", "completion", "reward", "advantage", "tokens", "truncated"]
    kept = table.filter(pc.field("phase") == "train").select(names)
    for row in kept.sort_by([(name, "ascending") for name in names[:3]]).to_pylist():
        yield TrainingCompletion(
            row["step"],
            row["group"],
            row["completion"],
            _number(row["reward"]),
            _number(row["advantage"]),
            row["tokens"],
            row["truncated"],
        )


def _read_trl(path: Path) -> RunRecord:
    states = [(place, _history(place)) for place in _state_files(path)]
    place, rows = max(states, key=lambda state: state[1][-1]["step"] if state[1] else 0)
    steps = tuple(row for row in rows if "loss" in row)
    home = place.absolute().parent
    output = home.parent if home.name.startswith("checkpoint-") else home
    return RunRecord(path, "trl", {}, steps, (), tuple(_trl_completions(output / "completions", steps)), rows)


def _state_files(path: Path) -> list[Path]:
    """The file itself, or the state of a folder and that of its newest checkpoint."""
    numbered = {int(number): place for place in path.glob(f"checkpoint-*/{STATE}") if (number := _digits(place.parent))}
    newest = [numbered[max(numbered)]] if numbered else []
    found = [path] if path.is_file() else [place for place in (path / STATE, *newest) if place.exists()]
    if not found:
        lack = "holds neither a manifest.json nor a trainer_state.json" if path.exists() else "does not exist"
        raise RunFolderError(
            f"{path} {lack}; give the folder that `stablerank train` wrote, or the output folder, a checkpoint or the "
            f"{STATE} of a TRL run."
        )
    return found


def _digits(checkpoint: Path) -> str:
    number = checkpoint.name.rpartition("-")[2]
    return number if number.isdecimal() else ""


def _history(place: Path) -> tuple[Row, ...]:
    with _whole(place):
        return _by_step(json.loads(place.read_bytes())["log_history"])


def _by_step(rows: Iterable[Row]) -> tuple[Row, ...]:
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        read = {key: _unspelled(value) for key, value in row.items()}
        merged.setdefault(int(row["step"]), {}).update(read, step=int(row["step"]))
    return tuple(merged[step] for step in sorted(merged))


def _unspelled(value: Any) -> Any:
    """JSON knows no NaN, so some writers spell it."""
    return float(value) if isinstance(value, str) and value.lower().lstrip("+-") in _SPELLED else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _trl_completions(folder: Path, steps: Sequence[Row]) -> Iterator[TrainingCompletion]:
    weights = _reward_weights(steps)
    for row in steps:
        place = folder / f"completions_{row['step']:05d}.parquet"
        # The log has a reward only at steps that generated; the others write the batch they reuse once more.
        if "reward" in row and place.exists():
            with _whole(place):
                yield from _trl_batch(row["step"], pq.read_table(place).to_pylist(), weights)


def _trl_batch(step: int, rows: Sequence[Row], weights: Mapping[str, float]) -> list[TrainingCompletion]:
    groups = groupby(rows, key=lambda row: row["prompt"])
    return [
        TrainingCompletion(
            step=step,
            group=group,
            text=completion_text(row["completion"]),
            reward=_weighted(row, weights),
            advantage=_number(row["advantage"]),
            tokens=0,
            truncated=False,
        )
        for group, (_, members) in enumerate(groups)
        for row in members
    ]


def completion_text(completion: str | Sequence[Row]) -> str:
    """The text of a completion: itself, or what the assistant said in its messages, a line each."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion if message["role"] == "assistant")


def _weighted(row: Row, weights: Mapping[str, float]) -> float:
    return weighted_sum([_number(row.get(name)) for name in weights], list(weights.values()))


def weighted_sum(rewards: Iterable[float], weights: Sequence[float]) -> float:
    """Rewards of one completion as TRL adds them: what could not be scored is left out, NaN where nothing could."""
    scored = [weight * reward for reward, weight in zip(rewards, weights, strict=True) if not math.isnan(reward)]
    return sum(scored) if scored else math.nan


def _reward_weights(steps: Sequence[Row]) -> dict[str, float]:
    keys = sorted({key for row in steps for key in row if key.startswith("rewards/") and key.endswith("/mean")})
    names = [key.removeprefix("rewards/").removesuffix("/mean") for key in keys]
    if not names:
        return {}
    means_and_sum = np.array([[row.get(key) for key in (*keys, "reward")] for row in steps], np.float64)
    means_and_sum = means_and_sum[np.isfinite(means_and_sum).all(axis=1)]
    weight_K = _solved_weights(means_and_sum[:, :-1], means_and_sum[:, -1])
    return dict(zip(names, weight_K.tolist(), strict=True))


def _solved_weights(mean_SK: Floats, reward_S: Floats) -> Floats:
    """Weights that add the means up to the logged reward; 1 each where that holds or nothing else follows."""

    def add_up(weight_K: Floats) -> bool:
        return np.allclose(mean_SK @ weight_K, reward_S, rtol=1e-4, atol=1e-6)  # TRL averages in float32

    equal_K = np.ones(mean_SK.shape[1])
    if add_up(equal_K):
        return equal_K
    weight_K, _, rank, _ = np.linalg.lstsq(mean_SK, reward_S, rcond=1e-4)
    # One step more than there are weights, so that a wrong solution shows.
    return weight_K if len(reward_S) > rank == len(equal_K) and add_up(weight_K) else equal_K
