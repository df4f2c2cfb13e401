"""Runs that overfit and runs that do not, for `overfitting_detector.py`: `python benchmarks/overfitting_runs.py`.

Language modelling of GSM8K solutions (recipe of studies/overfitting-signature) and DPO of chains of arithmetic, right
and wrong, on the embedded student (recipes/dpo.yaml): slow, fast, on more examples, at rank 1, with biases only, with
labels that teach nothing. Runs that only judge: language modelling on LLMBar; DPO on LLMBar and GSM8K, where the model
of stories has nothing to gain from a pair and the first evaluation is mostly the best. Each run
leaves a trace, a row an evaluated step of the validation curve: every signal that a rule may stop by, among them the
held-out loss on the first half of the validation texts, and ``judge``, that on the other half, which no rule reads. A
run that has a trace is not repeated, an interrupted one is taken up again.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, require_recipe

from stablerank.dynamics.overfitting_signals import signals_of
from stablerank.evaluation.losses import preference_loss, text_loss
from stablerank.evaluation.statistics import Interval
from stablerank.runs.atomic import write_text
from stablerank.runs.folder import RunFolder
from stablerank.tasks.arithmetic import problems, slipped
from stablerank.training.recipe import load_recipe
from stablerank.training.session import resume, start

TRACES = RESULTS / "overfitting_traces.json"
STUDY = "studies/overfitting-signature"
RHYTHM = ["geometry.every=6", "evaluation.every=6", "evaluation.curve_examples=64"]
STEPS = {"clm": 120, "dpo": 72}
"""DPO is past its best sooner, and a step of it costs twice as much."""
ARITHMETIC = ROOT / "runs" / "arithmetic-pairs.jsonl"
PAIRS = 1500
"""A tenth each is set aside for validation and test; runs train on the first few of the rest."""
BITFIT = "adapter={kind: bitfit, biases: added}"
LLMBAR = "data.path=llmbar"


def rate(value: float) -> str:
    return f"optimiser.learning_rate={value}"


CLM = {
    "usual": [],
    "slow": [rate(5e-4)],
    "fast": [rate(2e-2)],
    "more": ["data.limit=256"],
    "rank-1": ["adapter.r=1", "adapter.alpha=2"],
    "bitfit": [BITFIT, rate(2e-2)],
    "random": ["data.random_labels=true"],
}
DPO = {
    "usual": [rate(3e-4)],
    "slow": [rate(5e-5)],
    "fast": [rate(1e-3)],
    "more": ["data.limit=256", rate(3e-4)],
    "rank-1": ["adapter.r=1", "adapter.alpha=2", rate(1e-3)],
    "bitfit": [BITFIT, rate(3e-3)],
    "random": ["data.random_labels=true", rate(3e-4)],
}
STORIES_DPO = {
    "usual": [],
    "slow": [rate(1e-5)],
    "fast": [rate(1e-3)],
    "more": ["data.limit=256"],
    "rank-1": ["adapter.r=1", "adapter.alpha=2"],
    "bitfit": [BITFIT, rate(1e-3)],
    "random": ["data.random_labels=true"],
}
ON_ARITHMETIC = [f"data={{kind: pairs, path: '{ARITHMETIC}', limit: 16}}", "geometry.effects=true"]
SETTINGS = {
    **{f"clm-{name}": (f"{STUDY}/clm.yaml", overrides) for name, overrides in CLM.items()},
    **{f"dpo-{name}": ("recipes/dpo.yaml", [*ON_ARITHMETIC, *overrides]) for name, overrides in DPO.items()},
}
SHIFTED = {
    **{f"clm-{name}-llmbar": (f"{STUDY}/clm.yaml", [*CLM[name], LLMBAR]) for name in ("usual", "slow", "bitfit")},
    **{
        f"dpo-{name}-llmbar": (f"{STUDY}/dpo.yaml", [*STORIES_DPO[name], LLMBAR])
        for name in ("usual", "fast", "bitfit")
    },
    **{f"dpo-{name}-gsm8k": (f"{STUDY}/dpo.yaml", overrides) for name, overrides in STORIES_DPO.items()},
}
SEEDS = {"chosen": (941, 942), "judged": (951, 952), "shifted": (953, 954)}
"""Rules are chosen on the first part alone."""


def trained(setting: str, seed: int, work: Path) -> RunFolder:
    spec, overrides = {**SETTINGS, **SHIFTED}[setting]
    folder = RunFolder(work / f"{setting}-{seed}")
    length = [f"trainer.{key}={STEPS[setting[:3]]}" for key in ("max_steps", "save_steps")]
    asked = [*overrides, *RHYTHM, *length, f"seed={seed}", f"output={folder.path}"]
    require_recipe(folder.path, spec, asked[:-1])
    if folder.is_complete():
        return folder
    if (folder.path / "manifest.json").exists():
        return resume(folder.path)
    return start(load_recipe(ROOT / spec, asked), overrides=asked)


def write_pairs() -> None:
    """Chains of arithmetic, each right one beside the same with a step wrong and carried on."""
    rows = [{"prompt": p.prompt, "chosen": p.solution, "rejected": slipped(p)} for p in problems("train", PAIRS)]
    ARITHMETIC.parent.mkdir(parents=True, exist_ok=True)
    write_text(ARITHMETIC, "".join(json.dumps(row) + "\n" for row in rows))


def trace(folder: RunFolder) -> list[dict[str, Any]]:
    """A row an evaluated step: its signals, the held-out loss being that of the first half, and ``judge``."""
    rows = []
    for signals in signals_of(folder.evaluations.rows(), folder.geometry.rows(), folder.metrics.rows()):
        watched, judge = halves(folder, signals["step"])
        row = {**signals, "held_out": watched.value, "held_out_low": watched.low, "judge": judge.value}
        rows.append({name: rounded(value) for name, value in row.items()})
    return rows


def halves(folder: RunFolder, step: float | None) -> tuple[Interval, Interval]:
    """The held-out loss on the first and on the second half of the validation texts."""
    rows = [
        row for row in folder.examples.rows() if (row["phase"], row["part"], row["step"]) == ("curve", "curve", step)
    ]
    rows.sort(key=lambda row: row["row"])
    half, recipe = len(rows) // 2, folder.manifest()["recipe"]
    if recipe["objective"] == "clm":
        return text_loss(rows[:half])["loss"], text_loss(rows[half:])["loss"]
    beta = recipe["trainer"]["beta"]
    return preference_loss(rows[:half], beta)["loss"], preference_loss(rows[half:], beta)["loss"]


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def keep(part: str, setting: str, seed: int, rows: list[dict[str, Any]]) -> None:
    """One line a run, so that a new run is one new line."""
    kept = {**recorded(), f"{setting}-{seed}": {"part": part, "setting": setting, "seed": seed, "rows": rows}}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
    TRACES.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def recorded() -> dict[str, Any]:
    """Every trace by the name of its run."""
    found: dict[str, Any] = json.loads(TRACES.read_text(encoding="utf-8")) if TRACES.exists() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(SEEDS), metavar="PART", help=f"of {', '.join(SEEDS)}")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "overfitting", help="where the run folders go")
    arguments = parser.parse_args()
    write_pairs()
    for part in arguments.parts:
        for seed in SEEDS[part]:
            for setting in SHIFTED if part == "shifted" else SETTINGS:
                if f"{setting}-{seed}" not in recorded():
                    folder = trained(setting, seed, arguments.work.resolve())
                    keep(part, setting, seed, trace(folder))
                    shutil.rmtree(folder.path)
                    print(f"{part}: {setting}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
