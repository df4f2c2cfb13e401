"""Runs that learn and runs that collapse, on the embedded student: `python benchmarks/collapse_runs.py [SETTING ...]`.

Each setting is a recipe with overrides; each run leaves a trace (traces.py), which the benchmarks of alarms, onsets and
credit rules read. A run that has a trace is not repeated, an interrupted one is taken up again. Every five steps the
policy is asked held-out problems, judged by the answer alone: of validation for seeds that something is chosen on, of
test for those that judge.

S4 is gernim/lora-reward-density, scaled: its four prompts by four completions, temperature 0.7, top-p 0.95, 100 steps,
KL coefficient 0.05 and LoRA alpha 32 are kept; its 1,536 tokens for answers of 800 become CAP for answers of 14, and
its learning rate that of the embedded student's recipes. ``hot`` doubles that and samples without truncation, ``free``
takes the KL term away.
"""

import argparse
import shutil
from pathlib import Path

from common import ROOT, require_recipe
from traces import JUDGED, TRACES, keep, kept_seeds

from stablerank.runs.folder import RunFolder
from stablerank.training.recipe import load_recipe
from stablerank.training.session import resume, start

CAP = 128
CURVE = [
    "evaluation.every=5",
    "evaluation.curve_problems=100",
    "evaluation.problems=200",
    "evaluation.reward={kind: math_verify}",
    "geometry.every=5",
]
S4 = [
    *CURVE,
    "trainer.max_steps=100",
    "trainer.save_steps=50",
    "trainer.per_device_train_batch_size=16",
    "trainer.num_generations=4",
    "trainer.temperature=0.7",
    "trainer.top_p=0.95",
    "trainer.beta=0.05",
    f"trainer.max_completion_length={CAP}",
    "optimiser.warmup_steps=0",
]
WHOLE = ["trainer.temperature=1.0", "trainer.top_p=1.0"]
HOT = [*S4, *WHOLE, "optimiser.learning_rate=1.0e-3"]
FREE = [*S4, *WHOLE, "trainer.beta=0.0"]
NAIVE = "credit={rule: return_to_go, epsilon: 1.0e-8}"
OWN = "credit={rule: per_deposit, epsilon: 1.0e-8}"
MEAN = "credit={rule: mean_to_go}"
OUTCOME, PROCESS, DISTILLATION = "recipes/demo.yaml", "recipes/process.yaml", "recipes/distillation.yaml"


def unit(credit: str) -> str:
    """The same with advantages of unit standard deviation."""
    return f"{credit.removesuffix('}')}, unit: true}}"


TOKENS_OWN = "credit={centre: none, scale: none}"
TOKENS_SUM = "credit={centre: none, scale: none, tokens: to_go}"
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "s4-naive": (PROCESS, [*S4, NAIVE]),
    "s4-naive-unit": (PROCESS, [*S4, unit(NAIVE)]),
    "s4-naive-ninth": (PROCESS, [*S4, NAIVE, f"optimiser.learning_rate={5e-4 / 9:.3e}"]),
    "s4-own": (PROCESS, [*S4, OWN]),
    "s4-own-unit": (PROCESS, [*S4, unit(OWN)]),
    "s4-recommended": (PROCESS, [*S4, MEAN]),
    "s4-outcome": (OUTCOME, S4),
    "s4-distillation": (DISTILLATION, S4),
    "s4-distillation-unit": (DISTILLATION, [*S4, unit(TOKENS_OWN)]),
    "s4-distillation-sum": (DISTILLATION, [*S4, TOKENS_SUM]),
    "s4-distillation-sum-unit": (DISTILLATION, [*S4, unit(TOKENS_SUM)]),
    "hot-naive": (PROCESS, [*HOT, NAIVE]),
    "hot-position": (PROCESS, [*HOT, "credit={rule: position}"]),
    "hot-recommended": (PROCESS, [*HOT, MEAN]),
    "free-naive": (PROCESS, [*FREE, NAIVE]),
    "free-recommended": (PROCESS, [*FREE, MEAN]),
}


def run(name: str, seed: int, work: Path) -> None:
    recipe, overrides = SETTINGS[name]
    folder = RunFolder(work / f"{name}-{seed}")
    whole = [*overrides, f"evaluation.split={'validation' if seed < JUDGED else 'test'}", f"seed={seed}"]
    require_recipe(folder.path, recipe, whole)
    if folder.manifest_path.exists():
        resume(folder.path)
    else:
        whole.append(f"output={folder.path}")
        start(load_recipe(ROOT / recipe, whole), overrides=whole)
    shutil.rmtree(folder.checkpoints_path, ignore_errors=True)
    keep(name, seed, folder.path, about={"recipe": recipe, "overrides": overrides})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "collapse")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.settings:
            if seed not in kept_seeds(name):
                run(name, seed, arguments.work.resolve())
                print(name, seed, "kept in", TRACES.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
