"""Do gradients concentrate before the update does, and before the held-out loss? `python benchmarks/gradient_panel.py`

Language modelling and DPO on the same 32 problems (recipes of studies/overfitting-signature), with a checkpoint every
ten steps. At each, the gradients of a fixed panel of training texts (probes/panel_gradients.py): 16 right solutions for
language modelling, 8 pairs for DPO, so that both read 16 texts. Beside them, from the run's own tables: the stable rank
of the update and the held-out loss.

How early a quantity moves is its *half-time*: the first checkpoint at which it is at least half as far from its first
value as it ever gets. A lag is a difference of half-times in one run, whose interval comes from seeds.

A finished run in the work folder is read, an interrupted one is taken up again.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from common import ROOT, bootstrap_interval, print_table, require_recipe, train, write_results
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.dynamics.overfitting import Course, ranks_at
from stablerank.probes.panel_gradients import PanelGradients, panel_gradients
from stablerank.runs.folder import RunFolder
from stablerank.training.recipe import load_recipe
from stablerank.zoo.resolve import resolve

ARMS = {objective: f"studies/overfitting-signature/{objective}.yaml" for objective in ("clm", "dpo")}
PANEL = {"clm": 16, "dpo": 8}
GRADIENTS = ("example_stable_rank", "mean_stable_rank", "mean_nuclear_rank", "norm", "agreement")
OTHERS = ("update_stable_rank", "held_out")


def trained(arm: str, seed: int, arguments: argparse.Namespace) -> RunFolder:
    folder = RunFolder(arguments.work.resolve() / f"{arm}-{seed}-{arguments.steps}")
    overrides = [
        f"seed={seed}",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.save_steps={arguments.every}",
        f"trainer.save_total_limit={arguments.steps}",
        f"evaluation.every={arguments.every}",
        f"geometry.every={arguments.every}",
    ]
    require_recipe(folder.path, ARMS[arm], overrides)
    if not folder.is_complete():
        train(folder.path, ARMS[arm], overrides)
    return folder


class Panel:
    """The texts of one arm, and the loss of each."""

    def __init__(self, arm: str) -> None:
        recipe = load_recipe(ROOT / ARMS[arm])
        self.arm, self.place = arm, resolve(recipe.model.path)
        self.longest, self.beta = recipe.loss_settings["max_length"], recipe.loss_settings.get("beta")
        tokenizer = AutoTokenizer.from_pretrained(self.place)
        rows = recipe.data.train_rows()[: PANEL[arm]]
        sides = ("completion",) if arm == "clm" else ("chosen", "rejected")
        self.texts = [[self._encoded(tokenizer, row["prompt"], row[side]) for side in sides] for row in rows]
        base = AutoModelForCausalLM.from_pretrained(self.place).eval()
        with torch.no_grad():
            self.before = [[float(self._logprob(base, *text)) for text in example] for example in self.texts]

    def losses(self, model: Any) -> list[Callable[[], Tensor]]:
        """Nats a token, or a pair."""
        return [lambda at=at: self._loss(model, at) for at in range(len(self.texts))]

    def _loss(self, model: Any, at: int) -> Tensor:
        found = [self._logprob(model, *text) for text in self.texts[at]]
        if self.arm == "clm":
            return -found[0] / (len(self.texts[at][0][0]) - self.texts[at][0][1])
        chosen, rejected = (new - old for new, old in zip(found, self.before[at], strict=True))
        return -logsigmoid(self.beta * (chosen - rejected))

    def _logprob(self, model: Any, ids: list[int], prompt: int) -> Tensor:
        ids_1L = torch.tensor([ids])
        logprobs_LV = model(input_ids=ids_1L, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
        return logprobs_LV.gather(1, ids_1L[0, prompt:, None]).sum()

    def _encoded(self, tokenizer: Any, prompt: str, response: str) -> tuple[list[int], int]:
        asked = tokenizer(prompt).input_ids
        answer = tokenizer(response + tokenizer.eos_token, add_special_tokens=False).input_ids
        return [*asked, *answer][: self.longest], len(asked)


def measured(arm: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """A row a checkpoint, the untouched model first."""
    folder, panel = trained(arm, seed, arguments), Panel(arm)
    course = Course.of(folder.evaluations.rows(), folder.geometry.rows())
    held_out = {moment.step: moment.held_out for moment in course.moments}
    held_out[0] = next(row["loss"] for row in folder.evaluations.rows() if row["phase"] == "before")
    rows = []
    for step in (0, *sorted(held_out)[1:]):
        model: Any = AutoModelForCausalLM.from_pretrained(panel.place)
        if step:
            model = PeftModel.from_pretrained(model, folder.checkpoints_path / f"checkpoint-{step}")
        ranks = ranks_at(course.updates, step)
        rows.append(
            {
                "step": step,
                **plain(panel_gradients(model, panel.losses(model))),
                "update_stable_rank": fmean(ranks.values()) if ranks else float("nan"),
                "held_out": held_out[step],
            }
        )
    return rows


def plain(found: PanelGradients) -> dict[str, float]:
    return {
        "norm": float(found.norm_E.mean()),
        "norm_variation": float(found.norm_E.std(ddof=1) / found.norm_E.mean()),
        "agreement": float(np.nanmean(found.cosine_E)),
        "noise_scale": found.noise_scale,
        **{f"example_{name}": float(np.nanmean(rank)) for name, rank in found.example_ranks_WE.items()},
        **{f"mean_{name}": float(np.nanmean(rank)) for name, rank in found.mean_ranks_W.items()},
    }


def half_time(rows: Sequence[dict[str, float]], name: str) -> float:
    """NaN for a quantity that never moves."""
    known = [(row["step"], row[name]) for row in rows if np.isfinite(row[name])]
    moved = [abs(value - known[0][1]) for _, value in known]
    return next((step for (step, _), far in zip(known, moved, strict=True) if 0 < max(moved) <= 2 * far), float("nan"))


def lags(runs: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, Any]]:
    """Steps by which each gradient quantity comes before (negative: after) each other one, over seeds."""
    found = []
    for gradient in GRADIENTS:
        for other in OTHERS:
            lead = [half_time(rows, other) - half_time(rows, gradient) for rows in runs]
            low, high = bootstrap_interval(np.mean, lead) if len(lead) > 1 else (float("nan"), float("nan"))
            found.append({"gradient": gradient, "other": other, "lead": fmean(lead), "low": low, "high": high})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[921, 922, 923])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gradient-panel", help="where the run folders go")
    parser.add_argument("--dry", action="store_true", help="print, and write no file")
    arguments = parser.parse_args()
    runs = {arm: [measured(arm, seed, arguments) for seed in arguments.seeds] for arm in ARMS}
    for arm, found in runs.items():
        columns = list(found[0][0])
        print_table(
            f"{arm}, seed {arguments.seeds[0]}", columns, [[f"{row[c]:.3g}" for c in columns] for row in found[0]]
        )
    results = {arm: {"runs": found, "lags": lags(found)} for arm, found in runs.items()}
    if not arguments.dry:
        write_results("gradient_panel", {key: getattr(arguments, key) for key in ("seeds", "steps", "every")}, results)


if __name__ == "__main__":
    main()
