"""Accuracy of stable rank on pairs at every layer: `python benchmarks/layer_sweep.py [--pairs N] [--models NAME ...]`.

Layer k is ``hidden_states[k]``: 0 the embeddings, then the output of each block, the last one after the final norm;
``before_norm`` is the last block's output itself. Each layer also has its relative depth, k over the number of blocks.
Layers 5, 10, 15 and 20 of the source's 28 (appendix A) are marked by the nearest layer of equal relative depth.

SmolLM2 reads the pair sets in its chat template. The other two have none. The embedded teacher, which has room for a
few hundred characters, reads its own chains of arithmetic, right against one with a single number made wrong, equally
long; stories260K reads solutions of GSM8K, far from what it learned. An interrupted call goes on where it was.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from common import write_results
from sweeps import accuracies, parser, show

from stablerank.evaluation.correlates.number_edits import corrupt_number
from stablerank.evaluation.subjects import subject
from stablerank.runs.atomic import write_text
from stablerank.tasks.arithmetic import problems
from stablerank.tasks.files import data_folder
from stablerank.zoo.resolve import resolve

SMOLLM2 = "zoo:smollm2-135m-instruct"
TEACHER = "zoo:arith-teacher"
STORIES = "data:stories260K"
SCOPES = ("response", "all")
SOURCE_BLOCKS = 28
SOURCE_LAYERS = (5, 10, 15, 20)
WINDOW = 512
CHAINS = 400


def chains(work: Path) -> str:
    """A file of pairs: worked solutions of unseen chains, and the same with one number made wrong."""
    rows = []
    for number, problem in enumerate(problems("test", CHAINS)):
        wrong = corrupt_number(problem.solution, Random(number))
        rows.append({"prompt": problem.prompt, "chosen": problem.solution, "rejected": wrong, "subset": "chains"})
    write_text(work / "chains.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return str(work / "chains.jsonl")


def place(model: str) -> str:
    return str(data_folder() / model.removeprefix("data:")) if model.startswith("data:") else model


def sets_of(model: str, arguments: Any) -> list[str]:
    if model == TEACHER:
        return [chains(arguments.work)]
    return arguments.sets if model == SMOLLM2 else ["gsm8k_solutions"]


def swept(model: str, arguments: Any) -> dict[str, Any]:
    found = subject(place(model))
    blocks = int(json.loads((Path(resolve(place(model))) / "config.json").read_text())["num_hidden_layers"])
    layers = [*map(str, range(blocks + 1)), "before_norm"]
    names = {f"stable_rank:scope={scope},layer={layer}": (scope, layer) for scope in SCOPES for layer in layers}
    rows = accuracies(
        sets_of(model, arguments),
        list(names),
        arguments.work,
        model=place(model),
        limit=arguments.pairs,
        dtype=arguments.dtype,
        window=min(WINDOW, found.context or WINDOW),
        template="chat" if found.tokenizer.chat_template else "plain",
    )
    for row in rows:
        row["scope"], row["layer"] = names[row.pop("scorer")]
        row["set"] = Path(row["set"]).stem
    marked = {layer: round(layer * blocks / SOURCE_BLOCKS) for layer in SOURCE_LAYERS}
    return {"model": model, "blocks": blocks, "marked": marked, "rows": rows}


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--models", nargs="+", default=[SMOLLM2, TEACHER, STORIES])
    arguments = asked.parse_args()
    models = [swept(model, arguments) for model in arguments.models]
    for model in models:
        show(f"{model['model']}, scope response", [r for r in model["rows"] if r["scope"] == "response"], "layer")
    settings = {key: getattr(arguments, key) for key in ("sets", "pairs", "dtype")}
    write_results("layer_sweep", settings, {"models": models})


if __name__ == "__main__":
    main()
