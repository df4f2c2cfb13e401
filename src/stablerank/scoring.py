"""`stablerank.score`: from rows with a prompt and one response or several to one row of scores a response, resumable.

Legend: N answers.

What crosses floors: `tasks` reads rows, `rewards/scorers` score answers, `evaluation` keeps what is done.

::

    OUT/evaluation.json    the settings; once complete, the summary
    OUT/chunks/            scores of the chunks that are done, while others are not
    OUT/scores/            once complete, all.parquet: row, place, id, a column a score, tokens, status; no text

Contract: rows and places (the number of a response in its row) count from 0, and the table has the order of the file.
What cannot be scored is a row with its status and NaN. A kill loses one chunk at most, and the table ends with the bits
of an unbroken run on the same machine. Nothing is written before data, scorers and models' settings have been found
good. Times are told and not kept, so that files of two runs can be compared.

Left out on purpose: scores of pairs (`stablerank rewardbench`) and of choices (`stablerank bestofn`), several
processes, CSV cells that hold lists.
"""

import csv
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stablerank.errors import DataError, RecipeError, RunFolderError
from stablerank.evaluation.correlates.correlations import correlation
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.pairs.score_table import score_answers
from stablerank.evaluation.problems import fingerprint_of
from stablerank.probes.measure_folder import fingerprint
from stablerank.rewards.scorers.answers import Answer, Scorer, Scores, joined
from stablerank.rewards.scorers.frozen_model import Precision
from stablerank.rewards.scorers.specs import build_scorers, parse
from stablerank.rewards.scorers.templates import Side, Template, readable
from stablerank.runs.manifest import package_versions
from stablerank.runs.tables import ShardedTable
from stablerank.tasks.files import data_folder
from stablerank.tasks.preference_rows import read_rows
from stablerank.zoo.resolve import resolve

Progress = Callable[[int, int, str], None]
"""``progress(answers done, answers in all, throughput so far)``."""

SCORES, CHUNKS = "scores", "chunks"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FIRST_ROWS = 5
"""Rows that are named for each reason without a score."""


@dataclass(frozen=True)
class ScoreSummary:
    """One score over the answers that have it; a number that does not exist is NaN."""

    name: str
    answers: int
    mean: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""
    ties: float
    """The share of pairs of answers with exactly the same score."""
    length_correlation: float
    """Spearman's, with the tokens of the response (or their logarithm: ranks are the same)."""


@dataclass(frozen=True)
class Unscored:
    """Answers that lack a score for one reason, and where they are."""

    status: str
    answers: int
    rows: int
    first_rows: tuple[int, ...]
    """At most `FIRST_ROWS`."""


@dataclass(frozen=True)
class Throughput:
    """What was scored now, and how long it took, loading the model included."""

    answers: int = 0
    tokens: int = 0
    """Of the responses."""
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.answers:
            return "nothing was left to score"
        return f"{self.answers / self.seconds:,.1f} answers/s, {self.tokens / self.seconds:,.0f} tokens/s"


@dataclass(frozen=True)
class Scoring:
    """Every score, and what they come to."""

    meta: dict[str, Any]
    table: pa.Table
    """As in ``scores/all.parquet``."""
    scores: tuple[ScoreSummary, ...]
    unscored: tuple[Unscored, ...]
    throughput: Throughput
    folder: Path | None = None

    def results(self) -> dict[str, Any]:
        """The summary as plain data, the same for the same scores."""
        return {
            **self.meta,
            "quantiles": list(QUANTILES),
            "scores": [asdict(score) for score in self.scores],
            "unscored": [asdict(reason) for reason in self.unscored],
        }


@dataclass(frozen=True)
class _Source:
    """The answers of a file, in its order, and where each stands; ``ids`` if the rows have them."""

    answers: list[Answer]
    rows: list[int]
    places: list[int]
    ids: list[str | None] | None


def score(
    data: str | Path,
    scorers: Sequence[str] = ("stable_rank",),
    model: str | None = None,
    *,
    prompt_column: str = "prompt",
    response_column: str = "response",
    template: Template = "chat",
    window: int = 512,
    truncate: Side = "right",
    dtype: Precision = "float32",
    batch_tokens: int = 4096,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Scoring:
    """Score every response of a file.

    Args:
        data: a JSONL, JSON, CSV or Parquet file, ``data:NAME`` in the data folder, or a hub id.
        scorers: ``KIND`` or ``KIND:key=value,...``; see rewards/scorers/specs.py.
        model: ``zoo:NAME``, a model folder or a hub id, for every scorer that runs one and names none.
        prompt_column: of text, or of lists of chat messages.
        response_column: of text, or of lists of texts: several responses to the prompt.
        template: the text around prompt and response, or ``chat`` for the model's own.
        window: tokens of prompt and response together.
        truncate: the side on which what exceeds the window is cut.
        dtype: of the weights.
        batch_tokens: tokens of a batch, padding included; moves a score by less than `model_pass.BOUNDS`.
        out: folder for the scores; an interrupted call goes on there.
        progress: told after each chunk.

    Raises:
        StablerankError: anything that the user can mend.
    """
    _check(scorers, template, {"window": window, "batch_tokens": batch_tokens})
    raw = _columns(_rows(str(data)), str(data), prompt_column, response_column)
    source = _source(raw)
    statuses = [readable(answer) for answer in source.answers]
    _refuse_unreadable(statuses, str(data))
    reading: dict[str, Any] = {"template": template, "window": window, "truncate": truncate}
    reading |= {"dtype": dtype, "batch_tokens": batch_tokens}
    settings = {
        "data": str(data),
        "columns": {"prompt": prompt_column, "response": response_column},
        "scorers": list(scorers),
        "model": model,
        **reading,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "content": fingerprint_of(raw),
        "files": _files(scorers, model),
    }
    folder = None if out is None else EvaluationFolder(Path(out).expanduser())
    meter = _Meter(build_scorers(scorers, model, **reading))
    if folder is not None:
        folder.claim(settings)
    table = None if folder is None else _stored(folder)
    if table is None:
        table = _scored(source, statuses, scorers, meter, folder, progress)
    return _finished(table, scorers, settings, meter.throughput, folder)


def _check(scorers: Sequence[str], template: str, numbers: Mapping[str, int]) -> None:
    if not scorers:
        raise RecipeError("there is no scorer to score with; give one, such as `--scorer stable_rank`.")
    if template not in get_args(Template):
        raise RecipeError(f"there is no template {template!r}; choose one of {', '.join(get_args(Template))}.")
    for name, value in numbers.items():
        if value < 1:
            raise RecipeError(f"{name} is {value}, but it counts tokens; give 1 or more.")


# --- rows -------------------------------------------------------------------------------------------------------


def _rows(path: str) -> list[dict[str, Any]]:
    """Rows as they stand in the file; every cell of CSV is text."""
    local = data_folder() / path.removeprefix("data:") if path.startswith("data:") else Path(path)
    if local.suffix != ".csv" or not local.is_file():
        return read_rows(path)
    try:
        with local.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}); check its format.") from error


def _columns(rows: Sequence[Mapping[str, Any]], path: str, prompt: str, response: str) -> list[dict[str, Any]]:
    """The columns that count, under our names: ``prompt``, ``response``, and ``id`` if there is one."""
    if not rows:
        raise DataError(f"{path} holds no row; give a file with at least one.")
    there = list(dict.fromkeys(name for row in rows for name in row))
    for ours, theirs in (("prompt", prompt), ("response", response)):
        if theirs not in there:
            raise DataError(
                f"{path} has no column {theirs!r}, it has {', '.join(map(str, there)) or 'none'}; name the right one "
                f"with `--{ours}-column`."
            )
    names = {"prompt": prompt, "response": response, **({"id": "id"} if "id" in there else {})}
    return [{ours: row.get(theirs) for ours, theirs in names.items()} for row in rows]


def _source(rows: Sequence[Mapping[str, Any]]) -> _Source:
    answers, numbers, places = [], [], []
    for number, row in enumerate(rows):
        given = row["response"] if isinstance(row["response"], list) else [row["response"]]
        given = given or [None]  # a row without a response still has its place in the table
        answers += [Answer(row["prompt"], response) for response in given]
        numbers += [number] * len(given)
        places += list(range(len(given)))
    named = [row.get("id") for row in rows]
    ids = [None if named[number] is None else str(named[number]) for number in numbers]
    return _Source(answers, numbers, places, ids if any(ids) else None)


def _refuse_unreadable(statuses: Sequence[str], path: str) -> None:
    """DataError where nothing is left to score: more likely a wrong column than bad rows."""
    if "scored" not in statuses:
        counts = ", ".join(f"{count} {status}" for status, count in Counter(statuses).most_common())
        raise DataError(
            f"{path} holds no answer that can be scored ({counts}); check it, `--prompt-column` and "
            "`--response-column`."
        )


# --- scores -----------------------------------------------------------------------------------------------------


class _Meter:
    """All scorers as one `Scorer` that says how fast it was."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self.names = tuple(name for scorer in scorers for name in scorer.names)
        self.throughput = Throughput()
        self._scorers = scorers

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`."""
        started, before = time.perf_counter(), self.throughput
        found = joined([scorer.score(answers) for scorer in self._scorers])
        self.throughput = Throughput(
            before.answers + len(answers),
            before.tokens + int(found.tokens_N.sum()),
            before.seconds + time.perf_counter() - started,
        )
        return found


def _scored(
    source: _Source,
    statuses: Sequence[str],
    names: Sequence[str],
    meter: _Meter,
    folder: EvaluationFolder | None,
    progress: Progress | None,
) -> pa.Table:
    """The table, after all that is missing in the folder's chunks has been scored."""
    kept = [at for at, status in enumerate(statuses) if status == "scored"]

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, len(kept), str(meter.throughput))

    chunks = None if folder is None else ShardedTable(folder.path / CHUNKS)
    scores = score_answers([source.answers[at] for at in kept], [meter], chunks, tell)
    whole = _table(source, statuses, names, kept, scores)
    if folder is not None:
        _store(folder, whole)
    return whole


def _table(
    source: _Source, statuses: Sequence[str], names: Sequence[str], kept: Sequence[int], scores: Scores
) -> pa.Table:
    """One row an answer, in the order of the file."""
    status_N, tokens_N = np.asarray(statuses, dtype=object), np.zeros(len(statuses), dtype=np.int64)
    status_N[kept], tokens_N[kept] = scores.statuses, scores.tokens_N
    columns = {"row": pa.array(source.rows, pa.int64()), "place": pa.array(source.places, pa.int64())}
    if source.ids is not None:
        columns["id"] = pa.array(source.ids, pa.string())
    for name in names:
        value_N = np.full(len(statuses), np.nan)
        value_N[kept] = scores.column(name)
        columns[name] = pa.array(value_N, pa.float64())
    return pa.table({**columns, "tokens": pa.array(tokens_N), "status": pa.array(status_N, pa.string())})


# --- the summary ------------------------------------------------------------------------------------------------


def _finished(
    table: pa.Table,
    names: Sequence[str],
    settings: dict[str, Any],
    throughput: Throughput,
    folder: EvaluationFolder | None,
) -> Scoring:
    tokens_N = table["tokens"].to_numpy()
    scores = tuple(_summary(name, table[name].to_numpy(), tokens_N) for name in names)
    meta = {**settings, "answers": len(table), "packages": package_versions()}
    path = None if folder is None else folder.path
    done = Scoring(meta, table, scores, _unscored(table), throughput, path)
    if folder is not None:
        folder.complete(settings, {key: value for key, value in done.results().items() if key not in settings})
        shutil.rmtree(folder.path / CHUNKS, ignore_errors=True)
    return done


def _summary(name: str, value_N: NDArray[np.float64], tokens_N: NDArray[np.int64]) -> ScoreSummary:
    is_defined_N = np.isfinite(value_N)
    if not is_defined_N.any():
        return ScoreSummary(name, 0, np.nan, (np.nan,) * len(QUANTILES), np.nan, np.nan)
    defined = value_N[is_defined_N]
    _, counts = np.unique(defined, return_counts=True)
    pairs = len(defined) * (len(defined) - 1)
    has_length_N = is_defined_N & (tokens_N > 0)
    return ScoreSummary(
        name,
        len(defined),
        float(defined.mean()),
        tuple(np.quantile(defined, QUANTILES).tolist()),
        float((counts * (counts - 1)).sum() / pairs) if pairs else np.nan,
        correlation(value_N[has_length_N], tokens_N[has_length_N].astype(np.float64), "spearman"),
    )


def _unscored(table: pa.Table) -> tuple[Unscored, ...]:
    """Each reason, the most frequent first."""
    rows_of: dict[str, list[int]] = {}
    for row, status in zip(table["row"].to_pylist(), table["status"].to_pylist(), strict=True):
        if status != "scored":
            rows_of.setdefault(status, []).append(row)
    found = [Unscored(status, len(rows), len(set(rows)), _first(rows)) for status, rows in rows_of.items()]
    return tuple(sorted(found, key=lambda reason: -reason.answers))


def _first(rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(rows))[:FIRST_ROWS]


# --- the folder -------------------------------------------------------------------------------------------------


def _files(scorers: Sequence[str], model: str | None) -> str:
    """A hash of names, sizes and times of the files of every model that is named; a hub id stands for itself."""
    options = [value for name in scorers for _, value in parse(name) if isinstance(value, str)]
    places = {resolve(name) if name.startswith("zoo:") else name for name in (model, *options) if name is not None}
    folders = [Path(place).expanduser() for place in places]
    return fingerprint(
        str(file) for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()
    )


def _stored(folder: EvaluationFolder) -> pa.Table | None:
    whole = ShardedTable(folder.path / SCORES)
    try:
        return whole.read()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{whole.folder} is damaged; delete {folder.path} and start again.") from error


def _store(folder: EvaluationFolder, table: pa.Table) -> None:
    whole = ShardedTable(folder.path / SCORES)
    try:
        whole.write(0, table.to_pylist())
        whole.compact()
    except OSError as error:
        raise RunFolderError(f"{whole.folder} cannot be written ({error.strerror or error}); make room.") from error
