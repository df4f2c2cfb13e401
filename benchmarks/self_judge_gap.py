"""Stable rank against asking the model itself: `python benchmarks/self_judge_gap.py [--models ID ...] [--limit N]`.

Every model reads and judges the same pairs. Its stable rank in both scopes (chat template, 512 tokens) stands beside
three judges that are the model itself: P(Yes) (IPO), an expected grade, and A or B in both orders. Every model has a
self-score that needs no question, the mean log-probability of the response; shorter-wins and chance are the controls.
Reported: each score's accuracy, plain and at matched lengths, and stable rank less that score on the pairs that both
can score, with its 95 % interval by prompt.

Here: SmolLM2-135M-Instruct (weights rounded to 4 bits by its package) and stories260K read LLMBar; the embedded models
read chains of arithmetic, right and wrong rollouts of `zoo:arith-student` on validation problems, and SmolLM2 does too.
A model that cannot be asked (no token of its own for the words, no pair within its context) is named as left out.

Larger models, never run by us: hub ids with `--models`, `--dtype bfloat16`, `--results self_judge_gap_gpu`, and
`--spread` where one GPU cannot hold the model; the commands are in docs/scorers-judges.md.

Scores are kept in `--work`, some 64 answers a file: the same command goes on after a kill.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, print_table, write_results

from stablerank.cli.bars import passing_bar
from stablerank.errors import ModelError
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.pairs.agreement import agreement, credits_of
from stablerank.evaluation.pairs.comparison import PairScores, log_ratios
from stablerank.evaluation.pairs.gap import accuracy_gap
from stablerank.evaluation.pairs.matched import matched_accuracy
from stablerank.evaluation.pairs.resampling import Floats
from stablerank.evaluation.pairs.score_table import ItemScores, distinct_answers, score_answers
from stablerank.evaluation.problems import fingerprint_of
from stablerank.rewards.scorers.answers import Scorer
from stablerank.rewards.scorers.frozen_model import FrozenModel, load_frozen
from stablerank.rewards.scorers.ipo import IPOJudge
from stablerank.rewards.scorers.judge_model import JudgeModel
from stablerank.rewards.scorers.model_pass import ModelPass
from stablerank.rewards.scorers.pairwise import PairJudge
from stablerank.rewards.scorers.pointwise import PointwiseJudge
from stablerank.rewards.scorers.readings import SpectralReading, TokenReading, View
from stablerank.rewards.scorers.templates import Layout
from stablerank.rewards.scorers.trivial import LengthScorer, RandomScorer
from stablerank.runs.tables import ShardedTable
from stablerank.tasks.files import data_folder
from stablerank.tasks.preferences import Pair, load_pairs, spread

SMOLLM2, STORIES = "zoo:smollm2-135m-instruct", "stories260K"
PLAN = {
    SMOLLM2: ("llmbar", "chains"),
    STORIES: ("llmbar",),
    "zoo:arith-student": ("chains",),
    "zoo:arith-teacher": ("chains",),
}
"""What each model that is at hand can read; others read `SETS`."""
SETS = ("llmbar", "judgebench", "rmbench", "gsm8k_solutions")
SCOPES = ("response", "all")
JUDGES = ("judge_ipo", "judge_pointwise", "judge_pairwise")
BOTH_ORDERS, MARGIN = "judge_pairwise, both orders", "judge_pairwise, margin"
CHAIN_PROBLEMS = 200
PAIRS_AT_ONCE = 32
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Readers:
    """One loaded model with everything that scores by it."""

    frozen: FrozenModel
    scorers: Sequence[Scorer]
    pair_judge: PairJudge | None
    left_out: dict[str, str]
    """Why the model cannot be this judge."""


def readers_of(model: str, dtype: Any, spread: bool, batch_tokens: int) -> Readers:
    place = str(data_folder() / model) if model == STORIES else model
    frozen = load_frozen(place, dtype, spread)
    layout = Layout(template="chat" if frozen.tokenizer.chat_template else "bare")
    ranks = [SpectralReading(View(scope), {f"stable_rank, {scope}": "stable_rank"}) for scope in SCOPES]
    reading = ModelPass(frozen, [*ranks, TokenReading({"mean_logprob": "mean_logprob"})], layout, batch_tokens)
    lengths = [LengthScorer(name, sign, frozen.tokenizer) for name, sign in (("length", 1), ("shorter", -1))]
    asked, left_out = judges_of(frozen, batch_tokens)
    pair_judge = asked.pop("judge_pairwise", None)
    return Readers(frozen, [reading, *lengths, RandomScorer(), *asked.values()], pair_judge, left_out)


def judges_of(frozen: FrozenModel, batch_tokens: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The judges that the model can be, and why it cannot be the others."""
    judge = JudgeModel(frozen, batch_tokens)
    asked: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, kind in zip(JUDGES, (IPOJudge, PointwiseJudge, PairJudge), strict=True):
        try:
            asked[name] = kind(judge)
        except ModelError as error:
            left_out[name] = str(error)
    return asked, left_out


def pairs_of(name: str, limit: int | None) -> list[Pair]:
    if name != "chains":
        return [*spread(load_pairs(name), limit)]
    from train_pair_model import rolled_out

    rolled = rolled_out("validation", CHAIN_PROBLEMS, seed=0)
    return [
        Pair(f"{group}-{at}", pair.prompt, pair.right, pair.wrong, "chains", str(group))
        for group, found in enumerate(rolled)
        for at, pair in enumerate(found)
    ][:limit]


# --- scores, kept as they come ------------------------------------------------------------------------------------


def scored(readers: Readers, pairs: Sequence[Pair], folder: Path, told: Told) -> tuple[ItemScores, Floats | None]:
    """The scores of every answer, and the pairwise judge's log-odds of each pair in both orders."""
    answers, places = distinct_answers(pairs)
    table = score_answers(
        answers, readers.scorers, ShardedTable(folder / "answers"), lambda done: told(done, len(answers), "answers")
    )
    return ItemScores(table, places), odds_of(readers.pair_judge, pairs, ShardedTable(folder / "pairs"), told)


def odds_of(judge: PairJudge | None, pairs: Sequence[Pair], table: ShardedTable, told: Told) -> Floats | None:
    """``(pairs, 2)``: that the chosen response is better, where it stands first and where it stands second."""
    if judge is None:
        return None
    found = {row["pair"]: row["odds"] for row in table.rows()}
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        numbers = range(start, min(start + PAIRS_AT_ONCE, len(pairs)))
        if any(number not in found for number in numbers):
            compared = judge.compare_all([(pairs[n].prompt, pairs[n].chosen, pairs[n].rejected) for n in numbers])
            rows = [{"pair": n, "odds": [c.a_first, c.b_first]} for n, c in zip(numbers, compared, strict=True)]
            table.write(start, rows)
            found |= {row["pair"]: row["odds"] for row in rows}
        told(numbers.stop, len(pairs), "pairs, both orders")
    return np.array([found[number] for number in range(len(pairs))], dtype=np.float64)


# --- what they say ------------------------------------------------------------------------------------------------


def credits_by_score(scores: ItemScores, odds_P2: Floats | None) -> dict[str, Floats]:
    """What each pair earns by each score."""
    both = {name: scores.pairs(name) for name in scores.scores.names if name != "length"}
    if odds_P2 is not None:
        margins_P = odds_P2.mean(axis=1)
        both[MARGIN] = PairScores(margins_P, -margins_P)
    found = {name: credits_of(each.chosen_P, each.rejected_P) for name, each in both.items()}
    if odds_P2 is not None:
        # As the paper counts: orders that disagree are wrong, so that a judge of places gets nothing.
        found[BOTH_ORDERS] = np.where(np.isnan(odds_P2).any(axis=1), np.nan, (odds_P2 > 0).all(axis=1))
    return found


def rows_of(pairs: Sequence[Pair], scores: ItemScores, odds_P2: Floats | None) -> list[dict[str, Any]]:
    groups = [pair.group for pair in pairs]
    ratios_P = log_ratios(scores.pairs("length"))
    credits = credits_by_score(scores, odds_P2)
    ranks = {scope: credits[f"stable_rank, {scope}"] for scope in SCOPES}
    rows = []
    for name, credits_P in credits.items():
        # A credit is itself a score that beats one half, equals it or falls short of it.
        counted = agreement(credits_P, np.full(len(pairs), 0.5), groups)
        gaps = {scope: asdict(accuracy_gap(rank_P, credits_P, ratios_P, groups)) for scope, rank_P in ranks.items()}
        rows.append(
            {
                **{"score": name, "pairs": counted.pairs, "unscored": counted.undefined, "ties": counted.tie_rate},
                "accuracy": asdict(counted.accuracy),
                "matched": asdict(matched_accuracy(credits_P, ratios_P, groups).accuracy),
                "gaps": {} if name in (f"stable_rank, {scope}" for scope in SCOPES) else gaps,
            }
        )
    return rows


def measured(model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    readers = readers_of(model, arguments.dtype, arguments.spread, arguments.batch_tokens)
    size = sum(parameter.numel() for parameter in readers.frozen.model.parameters())
    found = []
    for name in arguments.sets or PLAN.get(model, SETS):
        pairs = pairs_of(name, arguments.limit)
        folder = arguments.work / re.sub(r"\W+", "-", f"{model} {name} {arguments.dtype} {len(pairs)}")
        content = fingerprint_of([asdict(pair) for pair in pairs])
        EvaluationFolder(folder).claim({"model": model, "set": name, "dtype": arguments.dtype, "content": content})
        with passing_bar(f"{model} on {name}") as told:
            scores, odds_P2 = scored(readers, pairs, folder, told)
        rows = rows_of(pairs, scores, odds_P2)
        unread = {row["score"]: f"none of {len(pairs)} pairs is within its context" for row in rows if not row["pairs"]}
        found.append(
            {
                **{"model": model, "parameters": size, "context": readers.frozen.context, "set": name},
                **{"pairs": len(pairs), "prompts": len({pair.group for pair in pairs})},
                **{"left_out": readers.left_out | unread, "rows": [row for row in rows if row["pairs"]]},
            }
        )
        show(found[-1])
    return found


def show(one: dict[str, Any]) -> None:
    lines = [
        [row["score"], str(row["pairs"]), span(row["accuracy"]), span(row["matched"])]
        + [span(row["gaps"][scope]["plain"]) if row["gaps"] else "" for scope in SCOPES]
        for row in one["rows"]
    ]
    columns = ("score", "pairs", "accuracy", "length-matched", "stable rank (response) less it", "stable rank (all)")
    print_table(f"{one['model']} on {one['set']}", columns, lines)
    for name, why in one["left_out"].items():
        print(f"left out: {name}: {why}")


def span(interval: dict[str, float]) -> str:
    return f"{interval['value']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"


def plain(value: Any) -> Any:
    """Without NaN, which JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PLAN), help="zoo:NAME, folders or hub ids")
    parser.add_argument("--sets", nargs="+", help="pairs as `stablerank rewardbench` reads them, or chains")
    parser.add_argument("--limit", type=int, help="at most so many pairs of each set, evenly spread")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--spread", action="store_true", help="blocks of the model over all GPUs")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "self-judge-gap")
    parser.add_argument("--results", default="self_judge_gap", help="name of the results file")
    arguments = parser.parse_args()
    found = [one for model in arguments.models for one in measured(model, arguments)]
    settings = {k: getattr(arguments, k) for k in ("models", "sets", "limit", "dtype", "spread", "batch_tokens")}
    write_results(arguments.results, settings, {"sets": plain(found)})


if __name__ == "__main__":
    main()
