"""Accuracy of stable rank on pairs by template and scope: `python benchmarks/template_sweep.py [--pairs N]`.

The native chat template and the six texts of arXiv 2512.02807, appendix I, each with the response's tokens alone and
with all tokens. The paper reports that overall accuracy changes by 3 points at most. An interrupted call goes on where
it was.
"""

from common import write_results
from sweeps import accuracies, parser, show

MODEL = "zoo:smollm2-135m-instruct"
SCOPES = ("response", "all")
TEMPLATES = ("chat", "plain", "response", "assistant", "user_assistant", "question_answer", "answer")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=MODEL)
    arguments = options.parse_args()
    names = {
        f"stable_rank:scope={scope},template={template}": (scope, template)
        for template in TEMPLATES
        for scope in SCOPES
    }
    asked = {"model": arguments.model, "limit": arguments.pairs, "dtype": arguments.dtype}
    rows = accuracies(arguments.sets, list(names), arguments.work, **asked)
    for row in rows:
        row["scope"], row["template"] = names[row.pop("scorer")]
    for scope in SCOPES:
        show(f"{arguments.model}, scope {scope}", [row for row in rows if row["scope"] == scope], "template")
    settings = {key: getattr(arguments, key) for key in ("model", "sets", "pairs", "dtype")}
    write_results("template_sweep", settings, {"rows": rows})


if __name__ == "__main__":
    main()
