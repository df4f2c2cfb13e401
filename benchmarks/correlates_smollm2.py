"""What stable rank goes with: `python benchmarks/correlates_smollm2.py [--pairs N] [--sets NAME ...]`.

37 text metrics beside the stable rank of SmolLM2's states on the pair sets: sample-level correlations over the
different responses, and paired ones over pairs, both also with the logarithm of the length in tokens held fixed.
``all`` puts the sets together. Scores and metrics are kept in shards, so that an interrupted call goes on.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, write_results
from sweeps import interval, parser

from stablerank.cli.bars import passing_bar
from stablerank.evaluation.correlates.correlations import correlate
from stablerank.evaluation.correlates.embedding import mean_pooled
from stablerank.evaluation.correlates.published import PUBLISHED
from stablerank.evaluation.correlates.registry import METRICS, metric_table
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.pairs.score_table import score_answers
from stablerank.evaluation.problems import fingerprint_of
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.runs.tables import ShardedTable
from stablerank.tasks.preferences import Pair, load_pairs, spread

MODEL = "zoo:smollm2-135m-instruct"
SCORERS = ("stable_rank:scope=response", "stable_rank:scope=all")
NAMES = [metric.name for metric in METRICS]
SHARD = 64
Key = tuple[str, str]
"""Group and text: one response of one prompt."""


def plain_prompt(pair: Pair) -> str:
    """What the metrics take for the question."""
    return pair.prompt if isinstance(pair.prompt, str) else "\n\n".join(turn["content"] for turn in pair.prompt)


def metric_values(prompts: Sequence[str], texts: Sequence[str], table: ShardedTable, model: str) -> np.ndarray:
    """The table of `metric_table`, a shard at a time."""
    embed = mean_pooled(model)
    found = {row["answer"]: row["values"] for row in table.rows()}
    with passing_bar("metrics") as tell:
        for step, start in enumerate(range(0, len(texts), SHARD)):
            some = slice(start, start + SHARD)
            if start not in found:
                values = metric_table(prompts[some], texts[some], embed)
                rows = [{"answer": start + at, "values": row.tolist()} for at, row in enumerate(values)]
                table.write(step, rows)
                found |= {row["answer"]: row["values"] for row in rows}
            tell(min(start + SHARD, len(texts)), len(texts), "answers")
    return np.array([found[at] for at in range(len(texts))])


def measured(pairs: Sequence[Pair], arguments: Any, out: Path) -> tuple[dict[Key, int], dict[str, np.ndarray]]:
    """Where each response's row is, and the columns: metrics, tokens, and one a scorer."""
    answers = {(pair.group, text): pair for pair in pairs for text in (pair.chosen, pair.rejected)}
    folder = EvaluationFolder(out)
    scorers = [*arguments.scorers, "longer"]
    content = fingerprint_of([asdict(pair) for pair in pairs])
    folder.claim(
        {"model": arguments.model, "scorers": scorers, "metrics": NAMES, "dtype": arguments.dtype, "content": content}
    )
    asked = [Answer(pair.prompt, text) for (_, text), pair in answers.items()]
    with passing_bar("scores") as tell:
        scores = score_answers(
            asked,
            build_scorers(scorers, arguments.model, dtype=arguments.dtype),
            ShardedTable(out / "scores"),
            lambda done: tell(done, len(asked), "answers"),
        )
    prompts = [plain_prompt(pair) for pair in answers.values()]
    values = metric_values(prompts, [text for _, text in answers], ShardedTable(out / "metrics"), arguments.model)
    columns = {"metrics": values, **{name: scores.column(name) for name in scorers}}
    return {key: at for at, key in enumerate(answers)}, columns


def studied(pairs: Sequence[Pair], rows: dict[Key, int], columns: dict[str, np.ndarray], scorer: str) -> dict[str, Any]:
    """Both levels of one scorer on some pairs, which may be of several sets."""
    keys = list(dict.fromkeys((pair.group, text) for pair in pairs for text in (pair.chosen, pair.rejected)))
    alone = np.array([rows[key] for key in keys])
    chosen, rejected = (np.array([rows[p.group, getattr(p, side)] for p in pairs]) for side in ("chosen", "rejected"))
    metrics, score, log_length = columns["metrics"], columns[scorer], np.log(columns["longer"])
    sample = correlate(NAMES, metrics[alone], score[alone], log_length[alone], [group for group, _ in keys])
    differences = (column[chosen] - column[rejected] for column in (metrics, score, log_length))
    paired = correlate(NAMES, *differences, [pair.group for pair in pairs])
    return {"sample": [asdict(each) for each in sample], "paired": [asdict(each) for each in paired]}


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--model", default=MODEL)
    asked.add_argument("--scorers", nargs="+", default=list(SCORERS))
    arguments = asked.parse_args()
    by_set = {name: spread(load_pairs(name), arguments.pairs) for name in arguments.sets}
    found: dict[str, Any] = {}
    together = [pair for pairs in by_set.values() for pair in pairs]
    size = "all" if arguments.pairs is None else arguments.pairs
    rows, columns = measured(together, arguments, arguments.work / f"correlates-{'-'.join(by_set)}-{size}")
    for name, pairs in {**by_set, "all": together}.items():
        found[name] = {
            **{"pairs": len(pairs), "groups": len({pair.group for pair in pairs})},
            "scorers": {scorer: studied(pairs, rows, columns, scorer) for scorer in arguments.scorers},
        }
    show(found["all"]["scorers"][arguments.scorers[0]], arguments.scorers[0])
    settings = {key: getattr(arguments, key) for key in ("model", "sets", "pairs", "dtype")}
    write_results("correlates_smollm2", settings, {"metrics": described(), "sets": found})


def described() -> list[dict[str, str]]:
    return [{"name": metric.name, "family": metric.family, "origin": metric.origin} for metric in METRICS]


def show(levels: dict[str, Any], scorer: str) -> None:
    lines = []
    for each in PUBLISHED:
        rows = {
            row["given_length"]: row["interval"]
            for row in levels[each.level]
            if (row["metric"], row["coefficient"]) == (each.metric, each.coefficient)
        }
        lines.append(
            [
                f"{each.metric}, {each.level} {each.coefficient}",
                *(f"{each.value:+.3f}", interval(rows[False]), interval(rows[True])),
            ]
        )
    print_table(f"{scorer}, all sets", ("metric", "published", "here", "given length"), lines)


if __name__ == "__main__":
    main()
