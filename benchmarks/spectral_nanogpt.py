"""Does the condition predict where Muon wins? Small language models from scratch, routed block by block.

``python benchmarks/spectral_nanogpt.py tune | final | report`` trains byte-level models on the texts of GSM8K
(`STABLERANK_DATA`): a Llama with SwiGLU and a GPT-NeoX with squared ReLU. Arms: AdamW alone, Muon on every hidden
matrix, on those that the condition favours on the first batch, on the others, and on one kind of matrix at a time.
``tune`` takes exploratory seeds and validation texts: AdamW's rate first, then Muon's for each arm. ``final`` takes
those rates, locked by the hash of the tuning's outcome, and fresh seeds, and reads the test texts once. One run is one
JSON file under ``--work``; a finished one is never run again, so the script goes on after any interruption. ``plan``
prints how many runs there are.

The verdict follows the rules in `verdicts`, written before the fresh seeds were drawn: routing by the condition must
beat its opposite, lose nothing to Muon everywhere, and the ratio of a kind of matrix, measured along AdamW's runs, must
order what Muon on that kind alone gains.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, print_table, write_results
from scipy import stats
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from stablerank.optimisers.routing import favoured_names, matching_names, routed, spectral_names
from stablerank.probes.spectral_condition import BlockCondition, record_condition
from stablerank.runs.atomic import write_json
from stablerank.tasks.files import data_folder

FAMILIES = {
    "llama, SwiGLU": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "neox, squared ReLU": ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
}
WHOLE = ("adamw", "muon", "condition", "against_condition")
LENGTH, BATCH, STEPS, WARMUP = 128, 16, 250, 20
WIDTH, DEPTH, HEADS = 128, 4, 4
ADAMW_RATES, MUON_RATES = (1e-3, 3e-3, 1e-2), (0.01, 0.02, 0.04)
EXPLORATORY, FRESH = (0,), (400, 401, 402)
EVALUATED, MEASURED = 64, (0, 5, 20, 50, 100, 249)
WEIGHT_DECAY = 0.1
TINY = {"steps": 6, "evaluated": 2}


def arms(family: str) -> list[str]:
    return [*WHOLE, *(f"only {kind}" for kind in FAMILIES[family])]


def model_of(family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "vocab_size": 256,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
    }
    if family.startswith("llama"):
        return LlamaForCausalLM(LlamaConfig(intermediate_size=344, num_key_value_heads=HEADS, **sizes))
    return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=4 * WIDTH, hidden_act="relu2", **sizes))


def texts(split: str) -> Tensor:
    """All bytes of a split: GSM8K's test file, and its training file with every tenth problem for validation."""
    name = "gsm8k_test.jsonl" if split == "test" else "gsm8k_train.jsonl.gz"
    raw = (data_folder() / name).read_bytes()
    lines = (gzip.decompress(raw) if name.endswith(".gz") else raw).splitlines()
    kept = [line for n, line in enumerate(lines) if split == "test" or (n % 10 == 0) == (split == "validation")]
    rows = (json.loads(line) for line in kept)
    return torch.tensor(list("\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows).encode()))


def batches(split: str, seed: int) -> Iterator[Tensor]:
    """Windows at random places, the same for every arm of a seed."""
    ids, draw = texts(split), torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=draw)
        yield torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])


def names_of(arm: str, model: Any, blocks: list[BlockCondition]) -> set[str]:
    """What Muon takes."""
    if arm == "adamw":
        return set()
    if arm == "muon":
        return spectral_names(model, "hidden")
    if arm.startswith("only "):
        return matching_names(model, [rf"\.{arm.removeprefix('only ')}\.weight"])
    wanted = "spectral" if arm == "condition" else "euclidean"
    return favoured_names(model, [(block.layer, block.module) for block in blocks if block.favours == wanted])


def conditions(model: Any, batch: Tensor, step: int) -> list[BlockCondition]:
    with record_condition(model) as recorder:
        recorder.mask(None)
        model(input_ids=batch, labels=batch).loss.backward()
        blocks = recorder.blocks(run="nanogpt", seed=0, step=step)
    model.zero_grad()
    return blocks


@torch.no_grad()
def held_out(model: Any, split: str, count: int) -> float:
    found = [model(input_ids=batch, labels=batch).loss.item() for batch in itertools.islice(batches(split, 7), count)]
    return float(np.mean(found))


def train(run: dict[str, Any], steps: int, evaluated: int) -> dict[str, Any]:
    """One run: held-out loss in nats a byte, and the block table of AdamW's."""
    model, stream = model_of(run["family"], run["seed"]), batches("train", run["seed"])
    first = next(stream)
    begun, at_start = time.process_time(), conditions(model, first, 0)
    names = names_of(run["arm"], model, at_start)
    optimiser = routed(model, names, muon_lr=run["muon"] or 0.0, adamw_lr=run["adamw"], weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / WARMUP) * min(1.0, 2 * (1 - step / steps)))
    table = []
    for step, batch in enumerate(itertools.chain([first], itertools.islice(stream, steps - 1))):
        if run["arm"] == "adamw" and step in MEASURED:
            table += [
                {"step": step, "layer": b.layer, "module": b.module, "nr": b.nuclear_rank, "st": b.stable_rank}
                for b in conditions(model, batch, step)
            ]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    loss = held_out(model, run["split"], evaluated)
    taken = sorted(names)
    return {**run, "loss": loss, "taken": taken, "table": table, "seconds": time.process_time() - begun}


def tuning(done: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every run of the tuning that can be named yet: AdamW's rate, then Muon's beside the best."""
    for family in FAMILIES:
        for rate, seed in itertools.product(ADAMW_RATES, EXPLORATORY):
            yield _run(family, "adamw", seed, rate, None, "validation")
        best = best_rates(done, family, "adamw")
        if best is None:
            continue
        for arm, rate, seed in itertools.product(arms(family)[1:], MUON_RATES, EXPLORATORY):
            yield _run(family, arm, seed, best[0], rate, "validation")


def best_rates(done: dict[str, dict[str, Any]], family: str, arm: str) -> tuple[float, float | None] | None:
    """The rates of the lowest mean validation loss; None until all were tried."""
    found: dict[tuple[float, float | None], list[float]] = {}
    for run in done.values():
        if (run["family"], run["arm"], run["split"]) == (family, arm, "validation"):
            found.setdefault((run["adamw"], run["muon"]), []).append(run["loss"])
    wanted = len(ADAMW_RATES if arm == "adamw" else MUON_RATES) * len(EXPLORATORY)
    return (
        None if sum(map(len, found.values())) < wanted else min(found, key=lambda rates: float(np.mean(found[rates])))
    )


def locked(done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The rates of every arm, and their hash; stops the script while tuning is not complete."""
    rates = {f"{family} | {arm}": best_rates(done, family, arm) for family in FAMILIES for arm in arms(family)}
    if missing := [name for name, found in rates.items() if found is None]:
        raise SystemExit(f"The tuning of {len(missing)} arms is not complete, first {missing[0]}: run `tune` first.")
    return {"rates": rates, "hash": hashlib.sha256(json.dumps(rates, sort_keys=True).encode()).hexdigest()}


def final(done: dict[str, dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """The runs that count."""
    lock, place = locked(done), work / "lock.json"
    if place.exists() and json.loads(place.read_text())["hash"] != lock["hash"]:
        raise SystemExit(f"{place} locked other rates: the tuning changed after the lock; choose another --work.")
    write_json(place, lock)
    for family in FAMILIES:
        for arm, seed in itertools.product(arms(family), FRESH):
            yield _run(family, arm, seed, *lock["rates"][f"{family} | {arm}"], "test")


def _run(family: str, arm: str, seed: int, adamw: float, muon: float | None, split: str) -> dict[str, Any]:
    return {"family": family, "arm": arm, "seed": seed, "adamw": adamw, "muon": muon, "split": split}


def key_of(run: dict[str, Any]) -> str:
    parts = [run[part] for part in ("split", "family", "arm", "adamw", "muon", "seed")]
    return "_".join(str(part) for part in parts).replace(", ", "-").replace(" ", "-")


def read(work: Path) -> dict[str, dict[str, Any]]:
    found = (json.loads(place.read_text()) for place in sorted(work.glob("*.json")) if place.name != "lock.json")
    return {key_of(run): run for run in found}


def gains(done: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Test loss of AdamW less that of each arm, a fresh seed each."""
    losses: dict[str, dict[str, list[float]]] = {}
    for family in FAMILIES:
        for arm in arms(family):
            runs = {run["seed"]: run["loss"] for run in done.values() if _is(run, family, arm, "test")}
            losses.setdefault(family, {})[arm] = [runs[seed] for seed in FRESH]
    return {
        family: {arm: list(np.subtract(of["adamw"], values)) for arm, values in of.items()}
        for family, of in losses.items()
    }


def ratios(done: dict[str, dict[str, Any]], family: str, split: str = "test") -> dict[str, dict[str, Any]]:
    """By kind of matrix and step: medians of nr, st and their ratio over layers and AdamW's runs."""
    rows = [row for run in done.values() if _is(run, family, "adamw", split) for row in run["table"]]
    found: dict[str, dict[str, Any]] = {}
    for kind in FAMILIES[family]:
        own = [row for row in rows if f".{row['module']}".endswith(f".{kind}") and row["nr"] == row["nr"]]
        found[kind] = {
            side: {
                step: float(np.median([_side(row, side) for row in own if row["step"] == step]))
                for step in sorted({row["step"] for row in own})
            }
            for side in ("nr", "st", "ratio")
        }
        found[kind]["median_ratio"] = float(np.median([_side(row, "ratio") for row in own]))
    return found


def _side(row: dict[str, Any], side: str) -> float:
    return float(row["nr"] / row["st"] if side == "ratio" else row[side])


def _is(run: dict[str, Any], family: str, arm: str, split: str) -> bool:
    return (run["family"], run["arm"], run["split"]) == (family, arm, split)


def interval(values: list[float]) -> dict[str, float]:
    """95 % t interval of a mean over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return {
        "value": float(np.mean(values)),
        "low": float(np.mean(values) - half),
        "high": float(np.mean(values) + half),
    }


def verdicts(won: dict[str, dict[str, list[float]]], measured: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Each claim by its rule: confirmed or falsified where the interval leaves zero on one side, else inconclusive."""

    def outcome(values: list[float]) -> str:
        found = interval(values)
        return "confirmed" if found["low"] > 0 else "falsified" if found["high"] < 0 else "inconclusive"

    judged = {}
    for family, of in won.items():
        judged[f"{family}: Muon on every hidden matrix beats AdamW"] = outcome(of["muon"])
        ahead = list(np.subtract(of["condition"], of["against_condition"]))
        judged[f"{family}: Muon by the condition beats Muon against it"] = outcome(ahead)
        rest = list(np.subtract(of["condition"], of["muon"]))
        judged[f"{family}: Muon by the condition beats Muon everywhere"] = outcome(rest)
    kinds = [(family, kind) for family in won for kind in FAMILIES[family]]
    found = stats.spearmanr(
        [measured[family][kind]["median_ratio"] for family, kind in kinds],
        [np.mean(won[family][f"only {kind}"]) for family, kind in kinds],
    )
    signed = "confirmed" if found.statistic > 0 else "falsified"
    judged[f"kinds with a larger ratio gain more (Spearman {found.statistic:+.2f}, p {found.pvalue:.2g})"] = (
        signed if found.pvalue < 0.05 else "inconclusive"
    )
    return judged


def report(done: dict[str, dict[str, Any]], work: Path) -> None:
    if missing := [run for run in final(done, work) if key_of(run) not in done]:
        raise SystemExit(f"{len(missing)} final runs are missing: run `final` first.")
    won = gains(done)
    measured = {family: ratios(done, family) for family in FAMILIES}
    judged = verdicts(won, measured)
    print_table("Verdicts", ["claim", "verdict"], [[claim, outcome] for claim, outcome in judged.items()])
    losses = {
        family: {arm: [run["loss"] for run in done.values() if _is(run, family, arm, "test")] for arm in arms(family)}
        for family in FAMILIES
    }
    taken = {
        family: {
            arm: float(np.mean([len(run["taken"]) for run in done.values() if _is(run, family, arm, "test")]))
            for arm in arms(family)
        }
        for family in FAMILIES
    }
    settings = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "width": WIDTH, "depth": DEPTH, "fresh_seeds": FRESH}
    settings |= {"exploratory_seeds": EXPLORATORY, "adamw_rates": ADAMW_RATES, "muon_rates": MUON_RATES}
    results = {
        "losses": losses,
        "gains": {family: {arm: interval(values) for arm, values in of.items()} for family, of in won.items()},
        "taken": taken,
        "ratios": measured,
        "lock": locked(done),
        "verdicts": judged,
    }
    write_results("spectral_nanogpt", settings, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tune", "final", "report", "plan"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "spectral_nanogpt", help="one file a run")
    parser.add_argument("--limit", type=int, default=10**6, help="runs of this call")
    parser.add_argument("--tiny", action="store_true", help="a few steps a run, to try the script; own --work")
    arguments = parser.parse_args()
    work, sizes = arguments.work, TINY if arguments.tiny else {"steps": STEPS, "evaluated": EVALUATED}
    work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "report":
        return report(read(work), work)
    if arguments.stage == "plan":
        tuned = sum(len(ADAMW_RATES) + (len(arms(f)) - 1) * len(MUON_RATES) for f in FAMILIES) * len(EXPLORATORY)
        counted = sum(len(arms(family)) for family in FAMILIES) * len(FRESH)
        return print(f"{tuned} runs of tuning and {counted} that count; {len(read(work))} are done")
    for _ in range(arguments.limit):
        done = read(work)
        todo = tuning(done) if arguments.stage == "tune" else final(done, work)
        run = next((run for run in todo if key_of(run) not in done), None)
        if run is None:
            return None
        found = train(run, **sizes)
        write_json(work / f"{key_of(run)}.json", found)
        print(
            f"{key_of(run)}: {found['loss']:.4f}, {len(found['taken'])} matrices, {found['seconds']:.0f} s", flush=True
        )
    return None


if __name__ == "__main__":
    main()
