"""Does changing one thing move stable rank as claimed? `python benchmarks/interventions_smollm2.py [--answers N]`.

Real answers of the pair sets and ProcessBench's GSM8K part (which knows the first wrong step), drawn at random, each in
every edited version and with its own length controls (src/stablerank/evaluation/correlates). Answers of `LEAST` to
`MOST` tokens, so that no version leaves the window. Scores are kept in shards, so that an interrupted call goes on.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from common import print_table, write_results
from sweeps import SETS, interval, parser

from stablerank.cli.bars import passing_bar
from stablerank.evaluation.correlates.effects import ORIGINAL, Marks, effects, mechanisms
from stablerank.evaluation.correlates.interventions import CONTROLS, INTERVENTIONS, Case, edited, with_others
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.pairs.score_table import score_answers
from stablerank.evaluation.problems import fingerprint_of
from stablerank.evaluation.subjects import subject
from stablerank.rewards.rollout import Prompt
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.runs.tables import ShardedTable
from stablerank.tasks.files import data_folder
from stablerank.tasks.preferences import load_pairs

MODEL = "zoo:smollm2-135m-instruct"
SCORERS = ("stable_rank:scope=response", "stable_rank:scope=all", "mean_logprob")
PROCESSBENCH = "processbench"
LEAST, MOST = 30, 200
WINDOW = 1024
SEED = 0


def processbench() -> list[Case]:
    with gzip.open(data_folder() / "processbench_gsm8k.json.gz", "rt", encoding="utf-8") as file:
        return [_of_steps(row) for row in json.load(file)]


def _of_steps(row: dict[str, Any]) -> Case:
    steps, first = row["steps"], row["label"]
    start = sum(len(step) + len("\n\n") for step in steps[: max(first, 0)])
    wrong = None if first < 0 else (start, start + len(steps[first]))
    return Case(row["id"], row["id"], row["problem"], "\n\n".join(steps), wrong=wrong)


def of_pairs(name: str) -> list[Case]:
    """Every different response of a set once."""
    found: dict[tuple[str, str], Prompt] = {}
    for pair in load_pairs(name):
        found |= {(pair.group, text): pair.prompt for text in (pair.chosen, pair.rejected)}
    return [Case(f"{name}-{at}", key[0], prompt, key[1]) for at, (key, prompt) in enumerate(found.items())]


def cases_of(name: str, count: int | None, tokenizer: Any) -> list[Case]:
    """Some answers of a length that fits, each with the nearest in length of another prompt."""
    found = processbench() if name == PROCESSBENCH else of_pairs(name)
    Random(f"{SEED}/{name}").shuffle(found)
    fitting = (case for case in found if LEAST <= len(tokenizer(case.answer)["input_ids"]) <= MOST)
    return with_others([case for case, _ in zip(fitting, range(count or len(found)), strict=False)])


def marks_of(cases: Sequence[Case], arguments: Any, out: Path) -> dict[str, dict[str, Marks]]:
    """By scorer and version: scores and lengths, one a case."""
    versions = [{ORIGINAL: case.answer, **edited(case, SEED)} for case in cases]
    scorers = [*arguments.scorers, "longer"]
    EvaluationFolder(out).claim(
        {
            **{"model": arguments.model, "scorers": scorers, "window": WINDOW},
            **{"dtype": arguments.dtype, "content": fingerprint_of(versions)},
        }
    )
    places = [(at, name) for at, version in enumerate(versions) for name in version]
    asked = [Answer(cases[at].prompt, versions[at][name]) for at, name in places]
    with passing_bar("scores") as tell:
        scores = score_answers(
            asked,
            build_scorers(scorers, arguments.model, window=WINDOW, dtype=arguments.dtype),
            ShardedTable(out / "scores"),
            lambda done: tell(done, len(asked), "answers"),
        )
    versions_of = (ORIGINAL, *CONTROLS, *(edit.name for edit in INTERVENTIONS))
    grids = {name: {scorer: np.full(len(cases), np.nan) for scorer in scorers} for name in versions_of}
    for scorer in scorers:
        for (at, name), value in zip(places, scores.column(scorer), strict=True):
            grids[name][scorer][at] = value
    return {
        scorer: {name: Marks(columns[scorer], columns["longer"]) for name, columns in grids.items()}
        for scorer in arguments.scorers
    }


def judged(marks: dict[str, Marks], groups: Sequence[str]) -> dict[str, Any]:
    """Effects and verdicts; ``spread`` is the standard deviation of the untouched answers' scores."""
    found = effects(marks, groups)
    return {
        "spread": float(np.nanstd(marks[ORIGINAL].score_N)),
        "effects": [{**asdict(each), "verdict": each.verdict} for each in found],
        "mechanisms": mechanisms(found),
    }


def main() -> None:
    asked = parser(__doc__)
    asked.set_defaults(sets=[*SETS, PROCESSBENCH])
    asked.add_argument("--model", default=MODEL)
    asked.add_argument("--scorers", nargs="+", default=list(SCORERS))
    asked.add_argument("--answers", type=int, default=60, help="of each set, drawn at random")
    arguments = asked.parse_args()
    tokenizer, found = subject(arguments.model).tokenizer, {}
    for name in arguments.sets:
        cases = cases_of(name, arguments.answers, tokenizer)
        marks = marks_of(cases, arguments, arguments.work / f"interventions-{name}-{arguments.answers}")
        groups = [case.group for case in cases]
        found[name] = {
            **{"answers": len(cases), "groups": len(set(groups))},
            "scorers": {scorer: judged(of_scorer, groups) for scorer, of_scorer in marks.items()},
        }
        show(name, arguments.scorers[0], found[name]["scorers"][arguments.scorers[0]])
    settings = {
        **{"model": arguments.model, "answers": arguments.answers, "tokens": [LEAST, MOST]},
        **{"window": WINDOW, "dtype": arguments.dtype},
    }
    write_results("interventions_smollm2", settings, {"sets": found})


def show(name: str, scorer: str, found: dict[str, Any]) -> None:
    lines = [
        [
            *(each["name"], f"{each['claim']:+d}", interval(each["change"]), interval(each["beyond"])),
            *(f"{each['answers']} ({each['outside']} out)", each["verdict"]),
        ]
        for each in found["effects"]
    ]
    print_table(f"{name}, {scorer}", ("edit", "claim", "change", "beyond length", "answers", "verdict"), lines)


if __name__ == "__main__":
    main()
