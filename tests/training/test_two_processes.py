"""Two processes equal one: the same recorded completions, the same global batch, groups that straddle processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve

REWARD = {
    "kind": "mixture",
    "components": [
        {"reward": {"kind": "math_verify"}},
        {"reward": {"kind": "process", "model": "zoo:arith-prm"}, "weight": 0.5},
        {"reward": {"kind": "process", "model": "zoo:arith-prm"}, "credit": {"rule": "position", "scale": "batch"}},
        {"reward": {"kind": "distillation", "teacher": {"path": "zoo:arith-teacher"}}, "weight": 0.1},
        {"reward": {"kind": "stable_rank"}, "weight": 0.1},
    ],
}


def recorded() -> list[dict[str, Any]]:
    """Three groups of four: right, wrong, cut, empty but for the end, and of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    rows = []
    for problem in problems("train", 3, level="easy", seed=4):
        right, end = problem.solution, [tokenizer.eos_token_id]
        wrong = right.replace("=", "=1", 1)
        texts = [(right, end), (wrong, end), (right[: len(right) // 2], []), ("", end)]
        for text, rest in texts:
            ids = tokenizer(text)["input_ids"] + rest
            rows.append({"prompt": problem.prompt, "answer": str(problem.answer), "completion_ids": ids})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dapo"])
def test_two_processes_equal_one(small_recipe, tmp_path: Path, loss_type: str) -> None:
    (tmp_path / "rollouts.json").write_text(json.dumps(recorded()))
    found = []
    for processes in (1, 2):
        trainer = {
            "max_steps": 1,
            "save_steps": 1,
            "save_total_limit": 1,
            "loss_type": loss_type,
            "per_device_train_batch_size": 12 // processes,
            "beta": 0.05,
            "shuffle_dataset": False,
            "max_completion_length": 40,
        }
        recipe = small_recipe(tmp_path / f"run{processes}", trainer=trainer, reward=REWARD)
        recipe["optimiser"] = {"learning_rate": 0.0, "max_grad_norm": 1e9}
        place = tmp_path / f"recipe{processes}.yaml"
        place.write_text(yaml.safe_dump(recipe))
        # Without a GPU this means CPU processes; `--cpu` would start only one.
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"] if processes == 2 else []
        out = tmp_path / f"{processes}.pt"
        script = [
            str(Path(__file__).with_name("replay_worker.py")),
            str(place),
            str(tmp_path / "rollouts.json"),
            str(out),
        ]
        done = subprocess.run(
            [sys.executable, *launch, *script], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(out, weights_only=True))
    one, two = found
    width = len(one["advantages"][0])
    # A process pads to its own longest completion.
    padded = torch.tensor([row + [0.0] * (width - len(row)) for row in two["advantages"]])
    assert (padded - torch.tensor(one["advantages"])).abs().max() <= 1e-6
    assert padded.abs().max() > 0.5
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert set(one["gradients"]) == set(two["gradients"]) and len(one["gradients"]) > 20
    norm = torch.stack([gradient.norm() for gradient in one["gradients"].values()]).norm()
    for name, gradient in one["gradients"].items():
        assert (two["gradients"][name] - gradient).norm() <= 1e-5 * norm, name
    assert norm > 0.01
