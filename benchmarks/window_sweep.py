"""Accuracy of stable rank on pairs by window: `python benchmarks/window_sweep.py [--pairs N]`.

The window is the first so many tokens of prompt and response together (arXiv 2512.02807, appendix H); 64 to 1024, by
set and subset, so that code (`rmbench`, and `coding` of JudgeBench) stands apart. A window that cuts two responses to
one text ties them, and one that leaves no token of a response leaves the pair out: tie rate and pairs without a score
stand beside the accuracy. An interrupted call goes on where it was.
"""

from common import write_results
from sweeps import accuracies, parser, show

MODEL = "zoo:smollm2-135m-instruct"
SCOPES = ("response", "all")
WINDOWS = (64, 128, 256, 512, 1024)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=MODEL)
    options.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS))
    arguments = options.parse_args()
    names = {
        f"stable_rank:scope={scope},window={window}": (scope, window)
        for scope in SCOPES
        for window in arguments.windows
    }
    asked = {"model": arguments.model, "limit": arguments.pairs, "dtype": arguments.dtype}
    rows = accuracies(arguments.sets, list(names), arguments.work, **asked)
    for row in rows:
        row["scope"], row["window"] = names[row.pop("scorer")]
    show(f"{arguments.model}, scope response", [row for row in rows if row["scope"] == "response"], "window")
    settings = {key: getattr(arguments, key) for key in ("model", "sets", "pairs", "dtype")}
    write_results("window_sweep", settings, {"rows": rows})


if __name__ == "__main__":
    main()
