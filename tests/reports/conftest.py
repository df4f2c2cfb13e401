"""A synthetic run folder, written through the same tables that a real run writes."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder
from stablerank.tasks import arithmetic

STEPS, LAYERS, PROBLEMS = 60, 4, 120
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

HOSTILE = (
    '<script>document.title="owned"</script>',
    "<img src=x onerror=\"document.title='owned'\">",
    "</style></pre></script><h1 id=pwned>hello</h1>",
    "{{7*7}} {% raw %} ${7*7}",
    "7 \u202e12=8-02\u202c \u200b\u2066hidden\u2069",
    "nul \x00 escape \x1b[31m bell \x07 del \x7f",
    "javascript:alert(document.domain)",
    "long " + "A" * 20_000,
    "lines " + "\n" * 200 + "end",
    '<svg/onload=alert(1)>&lt;b&gt; <a href="javascript:alert(1)">x</a> <meta http-equiv=refresh content=0>',
)

MANIFEST: dict[str, Any] = {
    "recipe": {
        "objective": "grpo",
        "model": {"path": "zoo:arith-student", "dtype": "float32"},
        "adapter": {"kind": "lora", "r": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"},
        "data": {"kind": "arithmetic", "level": "mixed", "problems": 4096},
        "reward": {"kind": "math_verify"},
        "optimiser": {"kind": "adamw", "learning_rate": 5e-4},
        "trainer": {"loss_type": "dapo", "beta": 0.02, "max_steps": STEPS, "num_generations": 8},
        "geometry": {"every": 5},
        "evaluation": {"split": "test", "problems": 600, "pass_reward": 1.0},
        "seed": 11,
        "output": "runs/demo",
    },
    "arguments": ["train", "recipes/demo.yaml"],
    "overrides": ["seed=11"],
    "commit": {"hash": "0f3c9d1e5b7a", "dirty": True, "diff": "-old line\n+new line <b>&amp;</b>\n"},
    "packages": {"stablerank": "0.1.0", "torch": "2.13.0", "trl": "1.16.0", "peft": "0.21.0"},
    "device": {"gpus": [], "cpu": "x86_64", "threads": 2},
    "seeds": {"seed": 11, "data_seed": 11},
    "hashes": {"model.safetensors": "9f86d081884c7d65"},
    "trainer_config": {"per_device_train_batch_size": 64},
    "parameters": {"trainable": 98_304, "total": 812_160},
}


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for tests that only read it."""
    return write_run(tmp_path_factory.mktemp("shared") / "demo")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write further runs; keywords of `write_run`."""
    return lambda name="other", **settings: write_run(tmp_path / name, **settings)


def write_run(path: Path, *, steps: int = STEPS, finished: bool = True, kl: bool = True, null: bool = True) -> Path:
    folder, rng = RunFolder(path), np.random.default_rng(5)
    write_json(folder.manifest_path, MANIFEST)
    for step in range(1, steps + 1):
        folder.metrics.append(_metrics(step, rng, kl))
        folder.timings.append({"step": step, "step_seconds": 1.1 + 0.1 * rng.random(), "telemetry_seconds": 0.01})
    for step in range(0, steps + 1, 5):
        folder.geometry.write(step, _geometry(step, rng, null))
        if step % 10 == 0:
            folder.evaluations.append(_evaluation(step, "curve", "validation", _accuracy(step), 200))
    folder.evaluations.append(_evaluation(0, "before", "test", 0.383, 600))
    folder.rollouts.write(0, _rollouts("before", 0, _accuracy(0)), "before")
    if finished:
        folder.evaluations.append(_evaluation(steps, "after", "test", 0.672, 600))
        folder.rollouts.write(steps, _rollouts("after", steps, _accuracy(steps)), "after")
        write_json(folder.summary_path, _summary(steps))
        folder.model_path.mkdir()
    return path


def _accuracy(step: int) -> float:
    return 0.38 + 0.3 * (1 - math.exp(-step / 18))


def _metrics(step: int, rng: np.random.Generator, kl: bool) -> dict[str, float]:
    reward = float(np.clip(_accuracy(step) + rng.normal(0, 0.04), 0, 1))
    row = {
        "step": step,
        "loss": float(rng.normal(0, 0.01)),
        "grad_norm": float(0.3 + 0.5 * math.exp(-step / 20) + 0.05 * rng.random()),
        "learning_rate": 5e-4,
        "reward": reward,
        "reward_std": math.sqrt(reward * (1 - reward)),
        "frac_reward_zero_std": float(np.clip(0.2 + 0.006 * step + rng.normal(0, 0.05), 0, 1)),
        "completions/mean_length": 24 + 0.2 * step + rng.normal(0, 1.2),
        "completions/clipped_ratio": float(np.clip(rng.normal(0.02, 0.01), 0, 1)),
        "entropy": 0.7 * math.exp(-step / 40) + 0.02 * rng.random(),
        "advantage_scale": 0.42 - 0.003 * step + 0.02 * rng.random(),
    }
    return row | ({"kl": 0.0009 * step * (1 + 0.2 * rng.random())} if kl else {})


def _geometry(step: int, rng: np.random.Generator, null: bool) -> list[dict[str, Any]]:
    return [
        _geometry_row(step, layer, module, rng, 8.6 + 0.25 * place if null else math.nan)
        for place, module in enumerate(MODULES)
        for layer in range(LAYERS)
    ] + [_geometry_row(step, None, "lm_head", rng, 7.9 if null else math.nan), _unrelated_row(step)]


def _geometry_row(step: int, layer: int | None, module: str, rng: np.random.Generator, null: float) -> dict[str, Any]:
    value = 1.4 + 0.35 * (layer or 0) + 0.03 * step + 0.2 * rng.random() if step else math.nan
    return {
        "run": "demo", "seed": 11, "step": step, "layer": layer, "module": module, "kind": "update",
        "metric": "stable_rank", "value": value, "lower": value, "upper": value, "confidence": 1.0,
        "status": "exact" if step else "zero", "passes": 1, "null": null, "null_low": null - 0.6,
        "null_high": null + 0.7, "null_kind": "gaussian_factors", "tokens": None,
    }  # fmt: skip


def _unrelated_row(step: int) -> dict[str, Any]:
    row = _geometry_row(step, 0, "mlp.up_proj", np.random.default_rng(0), 1.0)
    return row | {"kind": "weight", "value": 1e6}


def _evaluation(step: int, phase: str, split: str, value: float, problems: int) -> dict[str, Any]:
    half = 1.96 * math.sqrt(value * (1 - value) / problems)
    return {
        "step": step, "phase": phase, "split": split, "pass_at_1": value, "low": value - half, "high": value + half,
        "problems": problems, "mean_length": 30.0, "truncated": 0.01,
    }  # fmt: skip


def _rollouts(phase: str, step: int, accuracy: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(step)
    found = arithmetic.problems("test", PROBLEMS)
    return [_rollout(phase, step, row, problem, bool(rng.random() < accuracy)) for row, problem in enumerate(found)]


def _rollout(phase: str, step: int, row: int, problem: arithmetic.Problem, right: bool) -> dict[str, Any]:
    completion = problem.solution if right else arithmetic.boxed(problem.answer + 3)
    if row < len(HOSTILE):
        completion = f"{HOSTILE[row]}\n{completion}"
    return {
        "step": step, "phase": phase, "row": row, "group": row, "prompt": problem.prompt, "completion": completion,
        "answer": str(problem.answer), "reward": float(right), "advantage": None, "tokens": len(completion),
        "truncated": False,
    }  # fmt: skip


def _summary(steps: int) -> dict[str, Any]:
    return {
        "pass_at_1_before": {"value": 0.383, "low": 0.345, "high": 0.423, "problems": 600},
        "pass_at_1_after": {"value": 0.672, "low": 0.633, "high": 0.708, "problems": 600},
        "pass_at_1_gain": {"value": 0.289, "low": 0.246, "high": 0.331, "problems": 600},
        "train_seconds": 71.4,
        "telemetry_seconds": 0.62,
        "peak_memory_bytes": 1_230_000_000,
        "steps": steps,
        "split": "test",
        "model": "zoo:arith-student",
        "adapter": "lora",
        "seed": 11,
        "verdict": "improved",
    }


CHROMIUM_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real, silent Chromium that logs its console and its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*CHROMIUM_QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The module's report, freshly opened, with the logs of whatever came before it thrown away."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(report.as_uri())
    return browser
