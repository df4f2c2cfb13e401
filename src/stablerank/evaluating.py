"""`stablerank.evaluate`: from a model and a task to pass@k with intervals, resumable; `headroom` before an RL recipe.

What crosses floors: a recipe, or that of a finished run, says what is asked and how; `evaluation` asks, judges, counts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stablerank.adapters.specs import SavedSpec
from stablerank.errors import DataError, RecipeError
from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.generate import fitting_ids
from stablerank.evaluation.headroom import Headroom, judge_headroom
from stablerank.evaluation.measures import Measure, Values, compared, manners, pass_rates, unscorable
from stablerank.evaluation.pools import Answers, Exam, fill_pool
from stablerank.evaluation.problems import (
    Row,
    Split,
    Task,
    WholeFile,
    check_columns,
    fingerprint_of,
    parse_reward,
    parse_task,
)
from stablerank.evaluation.sampling import Sampling
from stablerank.evaluation.specs import EvaluationSpec
from stablerank.evaluation.subjects import Subject, is_run, subject
from stablerank.probes.measure_folder import fingerprint
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.runs.folder import RunFolder
from stablerank.runs.manifest import package_versions
from stablerank.training.recipe import Recipe, load_recipe, parse_recipe

KS = (1, 4, 8, 32)
PROBLEMS, NEW_TOKENS = 200, 256
"""Where neither the caller nor a recipe says."""
HEADROOM_PROBLEMS = 64

Progress = Callable[[int, int, str], None]
"""``progress(completions done, completions in all, model)``."""


@dataclass(frozen=True)
class Evaluation:
    """Every number, the verdict on headroom, and what a reader needs to know beside them."""

    meta: dict[str, Any]
    measures: tuple[Measure, ...]
    headroom: Headroom
    folder: Path | None = None

    def results(self) -> dict[str, Any]:
        """Plain data, the same for the same answers."""
        return {
            **self.meta,
            "measures": [asdict(measure) for measure in self.measures],
            "headroom": asdict(self.headroom),
        }


@dataclass(frozen=True)
class _Asked:
    """What the words of the caller and the recipe come to."""

    task: Task
    reward: RewardSpecBase
    evaluation: EvaluationSpec
    sampling: Sampling
    ks: tuple[int, ...]
    dtype: str

    def rows(self) -> list[Row]:
        found = self.task.held_out_rows(self.evaluation.split, self.evaluation.problems)
        if not found:
            raise DataError("The task holds no problem to evaluate on; choose another split or file.")
        check_columns(found, self.reward)
        return found


def evaluate(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    against: str | Path | None = None,
    task: str | None = None,
    recipe: Recipe | str | Path | None = None,
    reward: str | None = None,
    chat: bool = False,
    split: Split | None = None,
    problems: int | None = None,
    k: Sequence[int] = KS,
    samples: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy pass@1 and sampled pass@k of a model on held-out problems, each with its interval over problems.

    Args:
        model: ``zoo:NAME``, a model folder, a hub id, the folder of a PEFT adapter, or a finished run.
        adapter: folder of a PEFT adapter, ours included, or a run, to put on ``model``.
        against: another model, adapter or run, asked the same problems; differences are ours minus its.
        task: ``KIND:KEY=VALUE,...`` as in a recipe's data section, or a file with ``prompt`` and ``answer``.
        recipe: whose data, judge, sampling and evaluation sections apply; a run brings its own.
        reward: ``KIND:KEY=VALUE,...`` of a reward that judges; with ``task`` and by default ``math_verify``.
        chat: wrap each prompt of a file as a user message.
        split: ``test`` unless told; a file is asked as a whole.
        problems: at most so many, the first of the task.
        k: numbers of tries.
        samples: drawn a problem, at least the largest k, which is the default.
        temperature: of sampling; 1 by default.
        top_p: of sampling; 1 by default.
        seed: of what is drawn.
        max_new_tokens: limit of a completion; by default 256, or what the context leaves.
        batch_size: completions generated at once.
        dtype: ``float32`` (default), ``bfloat16`` or ``float16``.
        out: folder for answers and results; an interrupted evaluation goes on there.
        progress: told after each chunk.

    Raises:
        StablerankError: anything that the user can mend; all but what a model does is found before it is loaded.
    """
    given = {"split": split, "problems": problems, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    draw = {"samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    asked = _asked(_recipe(str(model), recipe), task, reward, chat, k, given, draw, dtype)
    subjects = {"model": subject(str(model), None if adapter is None else str(adapter), asked.dtype)}
    if against is not None:
        subjects["against"] = subject(str(against), None, asked.dtype)
    rows = asked.rows()
    exams = _exams(asked, rows, subjects)
    settings = _settings(asked, rows, subjects, exams)
    folder = None if out is None else EvaluationFolder(Path(out).expanduser())
    if folder is not None:
        folder.claim(settings)
    pools = _pools(asked.sampling, subjects, exams, folder, progress)
    return _evaluation(asked, settings, pools, exams["model"].max_new_tokens, folder)


def headroom(
    recipe: Recipe | str | Path,
    *,
    problems: int = HEADROOM_PROBLEMS,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Headroom:
    """Whether a recipe's policy samples anything to reinforce, on validation problems and as in training.

    Draws as many samples of a problem as training does, 8 at least; see evaluation/headroom.py for the rule.

    Raises:
        StablerankError: as `evaluate`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    most = max(8, recipe.loss_settings["num_generations"])
    return evaluate(
        recipe.model.path,
        adapter=recipe.adapter.path if isinstance(recipe.adapter, SavedSpec) else None,
        recipe=recipe,
        split="validation",
        problems=problems,
        k=(1, most),
        seed=recipe.seed,
        max_new_tokens=recipe.loss_settings["max_completion_length"],
        out=out,
        progress=progress,
    ).headroom


def _recipe(model: str, recipe: Recipe | str | Path | None) -> Recipe | None:
    """The one given, else that of the run."""
    if recipe is None:
        return parse_recipe(RunFolder(Path(model).expanduser()).manifest()["recipe"], model) if is_run(model) else None
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _asked(
    recipe: Recipe | None,
    task: str | None,
    reward: str | None,
    chat: bool,
    k: Sequence[int],
    given: Mapping[str, Any],
    draw: Mapping[str, Any],
    dtype: str | None,
) -> _Asked:
    """Each word of the caller over the recipe's, and that over the defaults."""
    chosen = recipe.data if recipe is not None and task is None else parse_task(task or "arithmetic", chat)
    if isinstance(chosen, WholeFile) and given["split"] is not None:
        raise RecipeError(
            f"{chosen.path} is asked as a whole, so it has no {given['split']} split; drop `--split`, or write "
            f"`file:path={chosen.path}` for the split that a recipe makes."
        )
    judge = recipe.judge if recipe is not None and task is None else parse_reward("math_verify")
    ks, most = _tries(k, draw["samples"])
    settings = {} if recipe is None else recipe.loss_settings
    return _Asked(
        task=chosen,
        reward=judge if reward is None else parse_reward(reward),
        evaluation=_evaluation_spec(recipe, given),
        sampling=Sampling(
            most,
            settings.get("temperature", 1.0) if draw["temperature"] is None else draw["temperature"],
            settings.get("top_p", 1.0) if draw["top_p"] is None else draw["top_p"],
            draw["seed"],
        ),
        ks=ks,
        dtype=dtype or (recipe.model.dtype if recipe is not None else "float32"),
    )


def _tries(k: Sequence[int], samples: int | None) -> tuple[tuple[int, ...], int]:
    """The ks in order, 1 among them, and how many samples to draw."""
    ks = tuple(sorted({1, *k}))
    most = ks[-1] if samples is None else samples
    if ks[0] < 1 or ks[-1] > most:
        wrong = ks[0] if ks[0] < 1 else ks[-1]
        raise RecipeError(f"pass@{wrong} cannot be estimated from {most} samples a problem; choose k in 1..{most}.")
    return ks, most


def _evaluation_spec(recipe: Recipe | None, given: Mapping[str, Any]) -> EvaluationSpec:
    if recipe is None:
        spec = EvaluationSpec(problems=PROBLEMS)
    else:
        longest = recipe.evaluation.max_new_tokens or recipe.loss_settings["max_completion_length"]
        spec = recipe.evaluation.model_copy(update={"max_new_tokens": longest})
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        if isinstance(value, int) and value < 1:
            raise RecipeError(f"{name} is {value}, but there must be at least 1; give 1 or more.")
    return spec.model_copy(update=changes)


def _exams(asked: _Asked, rows: Sequence[Row], subjects: Mapping[str, Subject]) -> dict[str, Exam]:
    """The same problems for each subject, with one limit that all have room for."""
    prompts = [row["prompt"] for row in rows]
    limit = asked.evaluation.max_new_tokens
    ids = {which: fitting_ids(s.tokenizer, prompts, limit or 1, s.context) for which, s in subjects.items()}
    rooms = [s.context - max(map(len, ids[which])) for which, s in subjects.items() if s.context is not None]
    # A judge reads texts, so one serves all.
    judge, longest = asked.reward.build(subjects["model"].tokenizer), limit or min(NEW_TOKENS, *rooms)
    return {which: Exam(rows, ids[which], judge, longest, asked.evaluation.batch_size) for which in subjects}


def _settings(
    asked: _Asked, rows: Sequence[Row], subjects: Mapping[str, Subject], exams: Mapping[str, Exam]
) -> dict[str, Any]:
    """All that decides the answers and what they are worth."""
    other = subjects.get("against")
    code = Path(getattr(asked.reward, "ref", "").rpartition(":")[0])
    return {
        "model": subjects["model"].name,
        "against": None if other is None else other.name,
        "task": asked.task.model_dump(mode="json"),
        "split": None if isinstance(asked.task, WholeFile) else asked.evaluation.split,
        "problems": len(rows),
        "reward": asked.reward.model_dump(mode="json"),
        **asdict(asked.sampling),
        "max_new_tokens": exams["model"].max_new_tokens,
        "batch_size": asked.evaluation.batch_size,
        "dtype": asked.dtype,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "content": fingerprint_of(rows),
        "files": [each.files() for each in subjects.values()],
        "judge": fingerprint([str(code)]) if code.is_file() else None,
    }


def _pools(
    sampling: Sampling,
    subjects: Mapping[str, Subject],
    exams: Mapping[str, Exam],
    folder: EvaluationFolder | None,
    progress: Progress | None,
) -> dict[tuple[str, str], list[Answers]]:
    """Greedy and sampled answers of each subject, one model in memory at a time."""
    found: dict[tuple[str, str], list[Answers]] = {}
    total = len(subjects) * len(exams["model"].rows) * (1 + sampling.samples)
    done = 0
    for which, each in subjects.items():
        load = cache(each.load)
        for decoding, drawn in (("greedy", None), ("sampled", sampling)):
            told = None if progress is None else _told(progress, done, total, each.name)
            table = None if folder is None else folder.pool(which, decoding)
            found[which, decoding] = fill_pool(exams[which], drawn, load, each.tokenizer, table, told)
            done += len(exams[which].rows) * (1 if drawn is None else drawn.samples)
    return found


def _told(progress: Progress, before: int, total: int, name: str) -> Callable[[int], None]:
    return lambda done: progress(before + done, total, name)


def _evaluation(
    asked: _Asked,
    settings: dict[str, Any],
    pools: Mapping[tuple[str, str], Sequence[Answers]],
    max_new_tokens: int,
    folder: EvaluationFolder | None,
) -> Evaluation:
    bar = asked.evaluation.pass_reward
    ours = _values(pools, "model", asked.ks, bar, max_new_tokens)
    others = _values(pools, "against", asked.ks, bar, max_new_tokens) if settings["against"] is not None else None
    measures = tuple(compared(ours, others))
    sampled = pass_rates(pools["model", "sampled"], "sampled", asked.ks, bar)
    verdict = judge_headroom(dict(zip(asked.ks, sampled, strict=True)))
    meta = {
        **settings,
        "k": list(asked.ks),
        "pass_reward": bar,
        "unscorable_problems": unscorable(*pools.values()),
        "packages": package_versions(),
    }
    done = Evaluation(meta, measures, verdict, None if folder is None else folder.path)
    if folder is not None:
        folder.complete(settings, json.loads(json.dumps(done.results())))
    return done


def _values(
    pools: Mapping[tuple[str, str], Sequence[Answers]], which: str, ks: Sequence[int], bar: float, max_new_tokens: int
) -> list[Values]:
    greedy, sampled = pools[which, "greedy"], pools[which, "sampled"]
    return [
        *pass_rates(greedy, "greedy", (1,), bar),
        *manners(greedy, "greedy", max_new_tokens),
        *pass_rates(sampled, "sampled", ks, bar),
        *manners(sampled, "sampled", max_new_tokens),
    ]
