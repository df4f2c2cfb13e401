"""`stablerank.rewardbench`: scorers side by side on preference pairs, RewardBench v1 and 2 among them.

What crosses floors: tasks reads the pairs, rewards/scorers scores their responses, evaluation/pairs compares.

::

    OUT/evaluation.json       settings and results
    OUT/scores/NAME/          Parquet, one row a response: scores, status, tokens read; no text

Each response of a data set is scored once, however many pairs it is in, by all scorers in one pass. Lengths, which
every accuracy is held against, are tokens of the common model, or characters where none is named.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stablerank.errors import DataError, RecipeError
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.pairs.agreement import Ties, credits_of
from stablerank.evaluation.pairs.best_of_four import RewardBench2, ScoredChoice, rewardbench2_scores
from stablerank.evaluation.pairs.comparison import PairScores, Part, Row, compared, described, parts_of
from stablerank.evaluation.pairs.published import Source, read_published
from stablerank.evaluation.pairs.reproduction import Chosen, Reproduction, beside, chosen_results
from stablerank.evaluation.pairs.rewardbench import (
    PAIRS,
    RewardBench,
    rewardbench_scores,
    unknown_subsets,
    whole_parts,
)
from stablerank.evaluation.pairs.score_table import ItemScores, distinct_answers, score_answers
from stablerank.evaluation.problems import fingerprint_of
from stablerank.evaluation.subjects import subject
from stablerank.rewards.scorers.answers import Scorer
from stablerank.rewards.scorers.frozen_model import Precision
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.rewards.scorers.templates import Template
from stablerank.rewards.scorers.trivial import LengthScorer
from stablerank.runs.manifest import package_versions
from stablerank.runs.strict_json import strict
from stablerank.runs.tables import ShardedTable
from stablerank.tasks.preferences import (
    Choice,
    Pair,
    Preferences,
    Refused,
    read_choices,
    read_pairs,
    read_preferences,
    spread,
)

SCORERS = ("stable_rank:scope=response", "stable_rank:scope=all", "mean_logprob")
CONTROLS = ("shorter", "longer", "random")
"""Asked for where nobody names scorers; the first three need a model."""
LENGTH = "length"
Version = Literal["v1", "v2"]
Progress = Callable[[int, int, str], None]
"""``progress(done, in all, what)``."""


@dataclass(frozen=True)
class SetResult:
    """Every scorer on one data set; of pairs or of choices, the other kind's fields are empty."""

    name: str
    refused: tuple[Refused, ...]
    unscored: Mapping[str, int]
    """Responses that some scorer could not score, by the reason."""
    parts: tuple[Part, ...] = ()
    rows: tuple[Row, ...] = ()
    v1: Mapping[str, RewardBench] | None = None
    """By scorer, where a subset of RewardBench is among the pairs."""
    unknown: Mapping[str, int] | None = None
    """Pairs of subsets that RewardBench does not have, where it has any of them."""
    v2: Mapping[str, RewardBench2] | None = None
    published: Reproduction | None = None
    """What others published beside ``v1``, where it was asked for."""


@dataclass(frozen=True)
class RewardBenching:
    """All data sets, and what a reader needs to know beside them."""

    meta: dict[str, Any]
    sets: tuple[SetResult, ...]
    folder: Path | None = None

    def results(self) -> dict[str, Any]:
        """Plain data; what is not defined is None."""
        found: dict[str, Any] = strict({**self.meta, "sets": [asdict(one) for one in self.sets]})
        return found


def rewardbench(
    data: str | Sequence[str],
    scorers: Sequence[str] | None = None,
    *,
    model: str | None = None,
    version: Version | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    ties: Ties = "half",
    template: Template = "chat",
    window: int = 512,
    dtype: Precision = "float32",
    batch_tokens: int = 4096,
    published: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> RewardBenching:
    """How often each scorer prefers the chosen response, with ties, intervals, and lengths held against it.

    Args:
        data: sets of the data folder, files or hub ids, as `read_pairs` takes them.
        scorers: ``KIND`` or ``KIND:key=value,...`` of rewards/scorers; by default stable rank and controls.
        model: ``zoo:NAME``, a folder or a hub id, for scorers that run one and name none.
        version: rows are pairs (v1) or choices among several responses (v2); by default as the rows look.
        columns: our name of a column to the file's.
        split: of a hub data set.
        limit: at most so many pairs or choices of each set, evenly spread over it.
        ties: what an equal score earns: ``half`` a pair, or nothing (``lose``), as RewardBench's own code has it.
        template: the text around prompt and response.
        window: tokens of prompt and response together.
        dtype: of the model's weights.
        batch_tokens: tokens of a batch.
        published: ``sr-grpo`` or a file of published numbers (evaluation/pairs/published.py), to stand beside ours.
        out: folder for scores and results; an interrupted call goes on there.
        progress: told of what is scored and compared.

    Raises:
        StablerankError: anything that the user can mend.
    """
    names = [data] if isinstance(data, str) else list(data)
    found = [_read(name, version, columns, split, limit) for name in _distinct(names)]
    asked = list(scorers) if scorers else [*(SCORERS if model else ()), *CONTROLS]
    readers = build_scorers(asked, model, dtype=dtype, batch_tokens=batch_tokens, template=template, window=window)
    others = None if published is None else _others(published, found, readers, model, window)
    settings = {
        **{"data": names, "version": version, "limit": limit, "scorers": asked, "model": model},
        **{"template": template, "window": window, "dtype": dtype},
        **{"files": None if model is None else subject(model).files(), "content": _content(found)},
    }
    folder = _claimed(out, settings)
    every = [*readers, LengthScorer(LENGTH, 1, None if model is None else subject(model).tokenizer)]
    tables = _scored(found, every, folder, progress)
    sets = tuple(_compared(each, table, ties, others, progress) for each, table in zip(found, tables, strict=True))
    return _completed(settings, {"ties": ties, "length": "tokens" if model else "characters"}, sets, folder)


@dataclass(frozen=True)
class _Others:
    """What others published, and what of it each scorer is held against."""

    source: Source
    chosen: Chosen


def _others(
    published: str, found: Sequence[Preferences[Any]], readers: Sequence[Scorer], model: str | None, window: int
) -> _Others:
    """Before anything is scored: a wrong name must not cost hours."""
    source = read_published(published)
    subsets = {item.subset for each in found for item in each.items if isinstance(item, Pair)}
    if not subsets & set(PAIRS):
        raise DataError(
            f"{published} has numbers of RewardBench v1, and no pair here is of its subsets; give its pairs."
        )
    names = [name for reader in readers for name in reader.names]
    return _Others(source, chosen_results(source, model, names, window))


def _content(found: Sequence[Preferences[Any]]) -> str:
    return fingerprint_of([asdict(item) for each in found for item in each.items])


def _claimed(out: str | Path | None, settings: dict[str, Any]) -> EvaluationFolder | None:
    if out is None:
        return None
    folder = EvaluationFolder(Path(out).expanduser())
    folder.claim(settings)
    return folder


def _completed(
    settings: dict[str, Any], beside: dict[str, Any], sets: tuple[SetResult, ...], folder: EvaluationFolder | None
) -> RewardBenching:
    meta = {**settings, **beside, "packages": package_versions()}
    done = RewardBenching(meta, sets, None if folder is None else folder.path)
    if folder is not None:
        folder.complete(settings, {key: value for key, value in done.results().items() if key not in settings})
    return done


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"Data {', '.join(names) or 'are missing'}: name each set once, and at least one.")
    return names


def _read(
    name: str, version: Version | None, columns: Mapping[str, str] | None, split: str | None, limit: int | None
) -> Preferences[Any]:
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, but there must be at least 1 pair; give 1 or more.")
    read: Callable[..., Preferences[Any]] = {None: read_preferences, "v1": read_pairs, "v2": read_choices}[version]
    whole = read(name, columns, split)
    return Preferences(whole.name, spread(whole.items, limit), whole.refused)


def _scored(
    found: Sequence[Preferences[Any]],
    scorers: Sequence[Scorer],
    folder: EvaluationFolder | None,
    progress: Progress | None,
) -> list[ItemScores]:
    asked = [distinct_answers(each.items) for each in found]
    total, before, tables = sum(len(answers) for answers, _ in asked), 0, []
    for number, (each, (answers, places)) in enumerate(zip(found, asked, strict=True)):
        # A path is no name of a folder.
        place = f"{number}-{re.sub(r'[^A-Za-z0-9_]+', '-', each.name)[-40:]}"
        table = None if folder is None else ShardedTable(folder.path / "scores" / place)
        told = None if progress is None else _told(progress, before, total, f"scoring {each.name}")
        tables.append(ItemScores(score_answers(answers, scorers, table, told), places))
        before += len(answers)
    return tables


def _told(progress: Progress, before: int, total: int, what: str) -> Callable[[int], None]:
    return lambda done: progress(before + done, total, what)


def _compared(
    found: Preferences[Any], table: ItemScores, ties: Ties, others: _Others | None, progress: Progress | None
) -> SetResult:
    unscored: dict[str, int] = dict(Counter(status for status in table.scores.statuses if status != "scored"))
    names = [name for name in table.scores.names if name != LENGTH]
    if isinstance(found.items[0], Choice):
        v2 = {name: rewardbench2_scores(_choices(found.items, table, name)) for name in names}
        return SetResult(found.name, found.refused, unscored, v2=v2)
    pairs: Sequence[Pair] = found.items
    scores, lengths = {name: table.pairs(name) for name in names}, table.pairs(LENGTH)
    rows = compared(pairs, scores, lengths, ties)
    total = len(parts_of(pairs)) * len(names)
    return SetResult(
        name=found.name,
        refused=found.refused,
        unscored=unscored,
        parts=tuple(described(pairs, lengths)),
        rows=tuple(_counted(rows, total, found.name, progress)),
        **_protocol(pairs, scores, ties, others),
    )


def _counted(rows: Any, total: int, name: str, progress: Progress | None) -> Any:
    for done, row in enumerate(rows, 1):
        if progress is not None:
            progress(done, total, f"comparing {name}")
        yield row


def _choices(choices: Sequence[Choice], table: ItemScores, name: str) -> list[ScoredChoice]:
    return [
        ScoredChoice(
            choice.id,
            choice.subset,
            choice.group,
            table.of(name, places[: len(choice.chosen)]),
            table.of(name, places[len(choice.chosen) :]),
        )
        for choice, places in zip(choices, table.places, strict=True)
    ]


def _protocol(
    pairs: Sequence[Pair], scores: Mapping[str, PairScores], ties: Ties, others: _Others | None
) -> dict[str, Any]:
    """RewardBench's own numbers, where any of its subsets is there."""
    subsets, groups = [pair.subset for pair in pairs], [pair.group for pair in pairs]
    if not set(subsets) & set(PAIRS):
        return {}
    found = {
        name: rewardbench_scores(credits_of(both.chosen_P, both.rejected_P, ties), subsets, groups)
        for name, both in scores.items()
    }
    v1 = {name: one for name, one in found.items() if one is not None}
    published = None if others is None else beside(others.source, others.chosen, v1, whole_parts(subsets))
    return {"v1": v1, "unknown": unknown_subsets(subsets), "published": published}
