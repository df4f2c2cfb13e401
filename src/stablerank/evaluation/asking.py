"""Ask every subject the same problems, greedily and by sampling, and read the numbers off the answers.

Contract: all subjects get one limit of tokens that each has room for. One model is in memory at a time, and none is
loaded whose answers are all there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from stablerank.evaluation.folder import EvaluationFolder
from stablerank.evaluation.generate import fitting_ids
from stablerank.evaluation.measures import Values, manners, pass_rates
from stablerank.evaluation.pools import Answers, Exam, fill_pool
from stablerank.evaluation.sampling import Sampling
from stablerank.evaluation.subjects import Subject
from stablerank.rewards.base_spec import RewardSpecBase

NEW_TOKENS = 256
"""Limit of a completion where nobody sets one and the context leaves as much."""

Subjects = Mapping[str, Subject]
"""``model``, and ``against`` if there is another."""
Pools = Mapping[tuple[str, str], Sequence[Answers]]
"""Answers by subject and decoding, such as ``("model", "greedy")``."""
Progress = Callable[[int, int, str], None]
"""``progress(completions done, completions in all, model)``."""


def exams(
    subjects: Subjects,
    rows: Sequence[Mapping[str, Any]],
    reward: RewardSpecBase,
    max_new_tokens: int | None,
    batch_size: int,
) -> dict[str, Exam]:
    """The problems as each subject reads them.

    Raises:
        StablerankError: a prompt does not fit a subject, a subject has no tokenizer, or the judge cannot be built.
    """
    prompts = [row["prompt"] for row in rows]
    ids = {which: fitting_ids(s.tokenizer, prompts, max_new_tokens or 1, s.context) for which, s in subjects.items()}
    rooms = [s.context - max(map(len, ids[which])) for which, s in subjects.items() if s.context is not None]
    # A judge reads texts, so one serves all.
    judge = reward.build(subjects["model"].tokenizer)
    longest = max_new_tokens or min([NEW_TOKENS, *rooms])
    return {which: Exam(rows, ids[which], judge, longest, batch_size) for which in subjects}


def fill_pools(
    subjects: Subjects,
    asked: Mapping[str, Exam],
    sampling: Sampling,
    folder: EvaluationFolder | None,
    progress: Progress | None,
) -> Pools:
    """Greedy and sampled answers of each subject; see `fill_pool` for what a folder gives back and what is raised."""
    found: dict[tuple[str, str], list[Answers]] = {}
    problems = len(asked["model"].rows)
    done, total = 0, len(subjects) * problems * (1 + sampling.samples)
    for which, each in subjects.items():
        load = cache(each.load)
        for decoding, drawn in (("greedy", None), ("sampled", sampling)):
            told = None if progress is None else _told(progress, done, total, each.name)
            table = None if folder is None else folder.pool(which, decoding)
            found[which, decoding] = fill_pool(asked[which], drawn, load, each.tokenizer, table, told)
            done += problems * (1 if drawn is None else drawn.samples)
    return found


def numbers_of(pools: Pools, which: str, ks: Sequence[int], bar: float, max_new_tokens: int) -> list[Values]:
    """Every number of one subject, problem by problem; an answer passes when its reward reaches ``bar``."""
    greedy, sampled = pools[which, "greedy"], pools[which, "sampled"]
    return [
        *pass_rates(greedy, "greedy", (1,), bar),
        *manners(greedy, "greedy", max_new_tokens),
        *pass_rates(sampled, "sampled", ks, bar),
        *manners(sampled, "sampled", max_new_tokens),
    ]


def _told(progress: Progress, before: int, total: int, name: str) -> Callable[[int], None]:
    return lambda done: progress(before + done, total, name)
