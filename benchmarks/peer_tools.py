"""WeightWatcher and diffract-core on one checkpoint, run inside the environment of the peers.

`python peer_tools.py TOOL FOLDER` prints one JSON object: seconds of the analysis alone (imports and loading of the
library left out) and the stable rank by tensor name.
"""

import contextlib
import io
import json
import sys
import time
from importlib import metadata
from pathlib import Path


def weightwatcher(folder: Path) -> tuple[float, dict[str, float], str]:
    import weightwatcher as ww

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        watcher = ww.WeightWatcher()
        details = watcher.analyze(model=str(folder), min_evals=1, plot=False)
    seconds = time.perf_counter() - started
    return (
        seconds,
        dict(zip(details["longname"], details["stable_rank"], strict=True)),
        metadata.version("weightwatcher"),
    )


def diffract(folder: Path) -> tuple[float, dict[str, float], str]:
    from diffract import Session
    from safetensors.torch import load_file

    # It takes no bf16 arrays; conversion and loading are left out of its time.
    state = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    state = {name: tensor for name, tensor in state.items() if tensor.ndim == 2}
    started = time.perf_counter()
    with Session(profile="ram") as session:
        session.models.add(state, model_id="model")
        session.compute.apply("stable_rank")
        table = session.results.export_metrics("stable_rank", export_format="pandas")
    seconds = time.perf_counter() - started
    ranks = {str(name): float(rank) for name, rank in zip(table["parameter_name"], table["stable_rank"], strict=True)}
    return seconds, ranks, metadata.version("diffract-core")


TOOLS = {"weightwatcher": weightwatcher, "diffract": diffract}

if __name__ == "__main__":
    seconds, ranks, version = TOOLS[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"seconds": seconds, "stable_rank": ranks, "version": version}))
