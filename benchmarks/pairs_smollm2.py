"""Does stable rank tell right from wrong on pairs? `python benchmarks/pairs_smollm2.py [SET ...] [--dtype bfloat16]`.

SmolLM2-135M-Instruct (weights rounded to 4 bits by its package) reads every response of the four sets of pairs in the
data folder: LLMBar, JudgeBench, RM-Bench's code, and GSM8K solutions with a recorded verdict. Stable rank in both
scopes, with and without centring, its spectral rivals, likelihoods, and the controls that know length or nothing, all
from one pass in the model's chat template with the window of the paper (512 tokens).

Scores are kept in `--work`, a file every 64 responses or so: a start after a kill does what is missing. Results are
written set by set, beside those of other sets with the same settings; they hold numbers and no text. Nothing is chosen
on these numbers: every scorer that was asked is in the table.
"""

import argparse
import time
from pathlib import Path

from common import ROOT, print_table, with_kept, write_results

from stablerank.rewardbenching import RewardBenching, rewardbench
from stablerank.tasks.preferences import SETS

NAME = "pairs_smollm2"
MODEL = "zoo:smollm2-135m-instruct"
SCORERS = (
    *(f"stable_rank:scope={scope},center={center}" for scope in ("all", "response") for center in ("false", "true")),
    *(f"{rival}:scope=response" for rival in ("effective_rank", "participation_ratio", "pca95")),
    *(f"{rival}:scope=response" for rival in ("condition_number", "rankme")),
    *("mean_logprob", "self_certainty", "token_entropy", "shorter", "longer", "random"),
)
REPORT_EVERY = 30.0


class Clock:
    """Prints how many responses a second have been scored; what a folder gave back does not count."""

    def __init__(self) -> None:
        self.began = self.told = time.perf_counter()
        self.first: int | None = None
        self.rate = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.perf_counter()
        if what.startswith("scoring"):
            # The first chunk is the warm-up, and where a folder was resumed.
            if self.first is None or now - self.began < 0.2:
                self.first, self.began = done, now
            elif done > self.first:
                self.rate = (done - self.first) / (now - self.began)
        if now - self.told > REPORT_EVERY or done == total:
            self.told = now
            print(f"{what}: {done} of {total}, {self.rate:.2f} answers/s", flush=True)


def shown(found: RewardBenching) -> None:
    for one in found.sets:
        rows = []
        for row in (row for row in one.rows if row.part == "all"):
            plain, matched, rho = row.agreement, row.matched.accuracy, row.ranks.given_length
            rows.append(
                [
                    row.scorer,
                    *(
                        f"{100 * i.value:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})"
                        for i in (plain.accuracy, matched)
                    ),
                    f"{100 * plain.tie_rate:.1f}",
                    f"{rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f})",
                ]
            )
        print_table(one.name, ("scorer", "accuracy, %", "at matched length, %", "ties, %", "rho given length"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--limit", type=int, help="pairs of each set; results are then printed, not written")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pairs-smollm2")
    args = parser.parse_args()
    for name in args.sets:
        clock = Clock()
        found = rewardbench(
            [name], SCORERS, model=MODEL, dtype=args.dtype, limit=args.limit, out=args.work / name, progress=clock
        )
        shown(found)
        results = found.results()
        if args.limit is None:
            settings = {key: results[key] for key in ("scorers", "model", "template", "window", "dtype", "length")}
            write_results(
                NAME, settings, {"sets": with_kept(NAME, settings, "sets", results["sets"], key="name", order=[*SETS])}
            )


if __name__ == "__main__":
    main()
