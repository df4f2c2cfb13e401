"""`stablerank.best_of_n`: what scorers choose from one pool of answers, beside choosing without them.

What crosses floors: a pool comes from a file, from an evaluation's folder, or is sampled now by `evaluate`; scorers of
rewards/scorers score it; evaluation/bestofn estimates and compares,
reports draws.

::

    OUT/evaluation.json    settings and results
    OUT/pool/              the evaluation that sampled the pool, where it was sampled now
    OUT/scores/            Parquet, one row a problem: scores, statuses, tokens read, seconds
    OUT/report.html        the page
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stablerank.errors import DataError, RecipeError
from stablerank.evaluating import evaluate
from stablerank.evaluation.bestofn.comparing import (
    LEAST_GAP,
    Gap,
    Line,
    Picks,
    control_lengths,
    gap,
    lines,
    pool_controls,
    scorer_lengths,
    scorer_picks,
)
from stablerank.evaluation.bestofn.evaluations import evaluation_pool, is_evaluation
from stablerank.evaluation.bestofn.keys import by_math_verify
from stablerank.evaluation.bestofn.pools import Pool, default_ns
from stablerank.evaluation.bestofn.recorded import GSM8K, gsm8k_solutions, recorded_pool
from stablerank.evaluation.bestofn.scores import Cost, ProblemScores, costs, reasons, score_pool, tied_share
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.problems import fingerprint_of
from stablerank.evaluation.subjects import subject
from stablerank.reports.bestofn import write_bestofn_report
from stablerank.rewards.scorers.answers import Scorer
from stablerank.rewards.scorers.frozen_model import Precision
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.rewards.scorers.templates import Template
from stablerank.runs.manifest import package_versions
from stablerank.runs.tables import ShardedTable

Progress = Callable[[int, int, str], None]
"""``progress(done, in all, what)``."""


@dataclass(frozen=True)
class Draw:
    """How a pool is sampled now: by which model, and settings of `evaluate`. Temperature and top-p are the paper's."""

    model: str
    samples: int = 16
    problems: int | None = None
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0
    max_new_tokens: int | None = None
    reward: str | None = None
    chat: bool = False
    batch_size: int | None = None


@dataclass(frozen=True)
class Reading:
    """How scorers that run a model read an answer."""

    model: str | None = None
    template: Template = "chat"
    window: int = 512
    dtype: Precision = "float32"


@dataclass(frozen=True)
class BestOfN:
    """Every chooser at every N, and what a reader needs to know beside them."""

    meta: dict[str, Any]
    gap: Gap
    lines: tuple[Line, ...]
    """Scorers, where there is headroom, and controls."""
    costs: tuple[Cost, ...]
    folder: Path | None = None

    @property
    def verdict(self) -> str:
        """Whether the pool tells choosers apart, in one sentence."""
        gain = f"oracle minus random at N = {self.gap.n} is {self.gap.gain.value:.3f}"
        if self.gap.has_headroom:
            return f"headroom: {gain}"
        return f"no headroom: {gain}, below {LEAST_GAP:g}, so nothing was scored or compared"

    def results(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **self.meta,
            "verdict": self.verdict,
            "has_headroom": self.gap.has_headroom,
            "gap": asdict(self.gap),
            "lines": [asdict(line) for line in self.lines],
            "costs": [asdict(cost) for cost in self.costs],
        }


def best_of_n(
    pool: Pool | str | Path,
    scorers: Sequence[str] = ("stable_rank",),
    *,
    reading: Reading = Reading(),
    draw: Draw | None = None,
    n: Sequence[int] | None = None,
    problems: int | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> BestOfN:
    """How often the answer that a scorer prefers among N is right: exact over all subsets, beside every control.

    Args:
        pool: a `Pool`; ``gsm8k_solutions``; the folder of an evaluation; a file or hub data set (see
            evaluation/bestofn/recorded.py); with ``draw`` a task as `evaluate` takes it.
        scorers: ``KIND`` or ``KIND:key=value,...`` of rewards/scorers.
        reading: whose states are read, and how; with ``draw``, by default the model that answers.
        draw: sample the pool now.
        n: numbers of answers to choose from; by default 1, 2, 4 and so on, and all.
        problems: at most so many of a recorded pool, the first.
        columns: our name of a recorded pool's column to the file's.
        out: folder for the sampled pool, scores and results; an interrupted call goes on there.
        progress: told of what is sampled, judged and scored.

    Raises:
        StablerankError: anything that the user can mend.
    """
    ns = None if n is None else _numbers(n)
    if draw is not None and reading.model is None:
        reading = replace(reading, model=draw.model)
    readers = _scorers(scorers, reading)
    settings = {
        "pool": pool.name if isinstance(pool, Pool) else str(pool),
        "draw": None if draw is None else asdict(draw),
        "scorers": list(scorers),
        **asdict(reading),
        "files": None if reading.model is None else subject(reading.model).files(),
        "at_most": problems,
    }
    with ExitStack() as stack:
        folder = None if out is None else EvaluationFolder(Path(out).expanduser())
        if draw is None:
            whole = pool if isinstance(pool, Pool) else _found(str(pool), columns or {}, progress)
            settings["content"] = fingerprint_of([asdict(problem) for problem in whole.problems])
        if folder is not None:
            folder.claim(settings)
        if draw is not None:
            place = stack.enter_context(TemporaryDirectory()) if folder is None else folder.path
            whole = _sampled(pool, draw, Path(place) / "pool", progress)
    first = Pool(whole.name, whole.problems[:problems], whole.left_out)
    return _chosen(first, readers, ns, settings, folder, progress)


def _scorers(names: Sequence[str], reading: Reading) -> list[Scorer]:
    if not names:
        raise RecipeError("there is no scorer to choose with; give one, such as `--scorer stable_rank`.")
    return build_scorers(names, reading.model, template=reading.template, window=reading.window, dtype=reading.dtype)


def _found(name: str, columns: Mapping[str, str], progress: Progress | None) -> Pool:
    """A recorded pool, whichever of the kinds the name is of."""
    if name == GSM8K:
        return gsm8k_solutions()
    folder = Path(name).expanduser()
    if is_evaluation(folder):
        return evaluation_pool(folder)
    return recorded_pool(name, columns, progress)


def _sampled(task: Pool | str | Path, draw: Draw, folder: Path, progress: Progress | None) -> Pool:
    if isinstance(task, Pool):
        raise RecipeError(f"the pool {task.name} has its answers, so there is nothing to sample; leave out `draw`.")
    settings = {name: value for name, value in asdict(draw).items() if name != "model"}
    evaluate(draw.model, task=str(task), k=(1,), out=folder, progress=progress, **settings)
    return evaluation_pool(folder)


def _chosen(
    whole: Pool,
    readers: Sequence[Scorer],
    ns: tuple[int, ...] | None,
    settings: dict[str, Any],
    folder: EvaluationFolder | None,
    progress: Progress | None,
) -> BestOfN:
    ns = ns or default_ns(whole)
    pool, kept = whole.usable(ns[-1])
    controls = pool_controls(pool, by_math_verify(), progress)
    reach = gap(controls, ns[-1])
    table = None if folder is None else ShardedTable(folder.path / "scores")
    # All of them, so that what is stored does not depend on N.
    every = score_pool(whole, readers, table, progress) if reach.has_headroom else []
    scored = [every[number] for number in kept] if every else []
    done = BestOfN(
        {**settings, **_told(pool, ns, scored), "packages": package_versions()},
        reach,
        tuple(_lines(pool, controls, scored, ns, progress)),
        costs(scored) if scored else (),
        None if folder is None else folder.path,
    )
    if folder is not None:
        folder.complete(settings, {key: value for key, value in done.results().items() if key not in settings})
        write_bestofn_report(folder.path)
    return done


def _lines(
    pool: Pool, controls: Picks, scored: Sequence[ProblemScores], ns: Sequence[int], progress: Progress | None
) -> Iterator[Line]:
    against, picks = (controls, scorer_picks(pool, scored)) if scored else (None, {})
    lengths = scorer_lengths(pool, scored) if scored else {}
    every = chain(
        lines("scorer", picks, lengths, ns, against), lines("control", controls, control_lengths(pool), ns, against)
    )
    for done, line in enumerate(every, start=1):
        if progress is not None:
            progress(done, len(ns) * (len(picks) + len(controls)), "comparing")
        yield line


def _told(pool: Pool, ns: Sequence[int], scored: Sequence[ProblemScores]) -> dict[str, Any]:
    answers = [len(problem.responses) for problem in pool.problems]
    lengths = [length for problem in pool.problems for length in pool.lengths(problem)]
    names = scored[0].scores if scored else ()
    return {
        "n": list(ns),
        "problems": len(pool.problems),
        "answers": sum(answers),
        "left_out": dict(pool.left_out),
        "length_unit": pool.length_unit,
        "mean_length": sum(lengths) / len(lengths),
        "without_final_answer": sum(key == "" for problem in pool.problems for key in problem.keys),
        "unscored": reasons(scored),
        "tied": {name: tied_share(scored, name) for name in names},
    }


def _numbers(n: Sequence[int]) -> tuple[int, ...]:
    ns = tuple(sorted(set(n)))
    if not ns or ns[0] < 1:
        raise DataError(f"N is {ns[0] if ns else 'missing'}, but one chooses from at least 1 answer; give 1 or more.")
    return ns
