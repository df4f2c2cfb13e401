"""Why a batch teaches nothing: each cause on a constructed group, and what must hold of any batch."""

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.dynamics.zero import CAUSES, LABELS, Setting, causes_of_batch, widened, zero_of_batch, zeros_of_record
from stablerank.runs.record import RunRecord, TrainingCompletion

NAN = math.nan
BOXED = r"so \boxed{4}"
DOCUMENT = Path(__file__).parents[2] / "docs" / "zero.md"
PLAIN = Setting(longest=32, seen=(0.0, 1.0))
MASKS = replace(PLAIN, masks_truncated=True)
FIRST = replace(PLAIN, seen=None)


def group_of(rewards, texts=BOXED, truncated=False, *, group=0, step=3):
    """One group, its advantages those of the definition: reward less the mean of the scored, 0 for the others."""
    count = len(rewards)
    rewards = np.array(rewards, float)
    scored = rewards[np.isfinite(rewards)]
    advantages = np.nan_to_num(rewards - (scored.mean() if scored.size else 0.0))
    texts = [texts] * count if isinstance(texts, str) else texts
    truncated = [truncated] * count if isinstance(truncated, bool) else truncated
    return [
        TrainingCompletion(step, group, text, float(reward), float(advantage), len(text), cut)
        for text, reward, advantage, cut in zip(texts, rewards, advantages, truncated, strict=True)
    ]


@pytest.mark.parametrize(
    ("group", "setting", "cause"),
    [
        (group_of([0, 1, 0, 0]), PLAIN, None),
        (group_of([0, 1, NAN, NAN]), PLAIN, None),
        (group_of([0, 0, 0, 0]), PLAIN, "wrong"),
        (group_of([1, 1, 1, 1]), PLAIN, "correct"),
        (group_of([0.5, 0.5]), PLAIN, "equal"),
        (group_of([1, 1, NAN]), PLAIN, "correct"),
        # One reward, or none.
        (group_of([1, NAN, NAN, NAN]), PLAIN, "one_sample"),
        (group_of([NAN, NAN]), PLAIN, "one_sample"),
        (group_of([1]), PLAIN, "one_sample"),
        # What the completions look like explains a low reward, and no high one.
        (group_of([0, 0], ["", " \n"]), PLAIN, "empty"),
        (group_of([0, 0], truncated=True), PLAIN, "truncated"),
        (group_of([0, 0], "4", truncated=True), PLAIN, "truncated"),
        (group_of([0, 0], truncated=[True, False]), PLAIN, "wrong"),
        (group_of([0, 0], ["4", "four"]), PLAIN, "unreadable"),
        (group_of([0, 0], ["4", BOXED]), PLAIN, "wrong"),
        (group_of([0, 0], ["4", "four"]), replace(PLAIN, answer=None), "wrong"),
        (group_of([0, 0], ["#### 4", "4"]), replace(PLAIN, answer="####"), "wrong"),
        (group_of([1, 1], "", truncated=True), PLAIN, "correct"),
        (group_of([-1, -1], "4", truncated=True), FIRST, "truncated"),
        # Kept out of the loss, whatever the rewards.
        (group_of([0, 1], truncated=True), MASKS, "masked"),
        (group_of([NAN, NAN], "", truncated=True), MASKS, "masked"),
        (group_of([0, 1, NAN], truncated=[True, True, False]), MASKS, "masked"),
        (group_of([0, 1, 0], truncated=[True, True, False]), MASKS, None),
        (group_of([0, 1], truncated=True), PLAIN, None),
        # Highest and lowest are what the run has seen; alone, 1 and 0 are verifiers'.
        (group_of([0.5, 0.5]), replace(PLAIN, seen=(0.5, 2.0)), "wrong"),
        (group_of([0.5, 0.5]), replace(PLAIN, seen=(-1.0, 0.5)), "correct"),
        (group_of([1, 1]), replace(PLAIN, seen=(0.0, 3.0)), "equal"),
        (group_of([1, 1]), FIRST, "correct"),
        (group_of([0, 0]), FIRST, "wrong"),
        (group_of([0.5, 0.5]), FIRST, "equal"),
    ],
)
def test_cause_of_a_group(group, setting, cause):
    assert causes_of_batch(group, setting) == {cause: 1}
    zero = zero_of_batch(group, setting)
    assert (zero and zero.cause) == cause


def test_step_rewards_teach_beside_equal_sums():
    group = [replace(one, advantage=a) for one, a in zip(group_of([1, 1]), (0.4, -0.4), strict=True)]
    assert zero_of_batch(group, PLAIN) is None


def test_unknown_advantages_are_judged_by_the_rewards():
    unknown = [replace(one, advantage=NAN) for one in group_of([0, 1])]
    assert zero_of_batch(unknown, PLAIN) is None
    assert zero_of_batch([replace(one, reward=0.0) for one in unknown], PLAIN).cause == "wrong"


@pytest.mark.parametrize("size", [0.7, -1.7, 10.1])
def test_rounding_of_a_mean_is_no_signal_and_is_told(size):
    """fp32 as TRL computes it: eight equal rewards less their mean, over their deviation and 1e-4."""
    rewards_8 = np.full(8, size, np.float32)
    mean = np.float32(np.add.accumulate(rewards_8)[-1] / np.float32(8))
    left_8 = rewards_8 - mean
    advantages_8 = left_8 / (np.sqrt((left_8**2).sum() / 7) + 1e-4)
    assert np.abs(advantages_8).max() > 1e-4
    group = [
        replace(one, advantage=float(advantage))
        for one, advantage in zip(group_of(rewards_8.tolist()), advantages_8, strict=True)
    ]
    zero = zero_of_batch(group, FIRST)
    assert zero.cause == "equal"
    assert f"advantages of up to {np.abs(advantages_8).max():.1g}, of which Adam" in zero.message


rewards = st.sampled_from([0.0, 1.0, 5.0, NAN])
"""No mean of up to four of these is one of them, unless all are equal: whoever differs has an advantage."""
completions = st.tuples(rewards, st.sampled_from(["", "4", BOXED]), st.booleans())
batches = st.lists(st.lists(completions, min_size=1, max_size=4), min_size=1, max_size=6)
settings = st.builds(
    Setting,
    masks_truncated=st.booleans(),
    answer=st.sampled_from([None, "boxed"]),
    seen=st.sampled_from([None, (0.0, 1.0), (-2.0, 5.0)]),
)


def batch_of(drawn):
    return [one for number, group in enumerate(drawn) for one in group_of(*zip(*group, strict=True), group=number)]


def moves_the_policy(completion, setting):
    return completion.advantage != 0 and not (completion.truncated and setting.masks_truncated)


@given(batches, settings)
def test_every_group_is_counted_once_and_signal_is_an_advantage_in_the_loss(drawn, setting):
    batch = batch_of(drawn)
    counts = causes_of_batch(batch, setting)
    assert counts.total() == len(drawn)
    teaching = {one.group for one in batch if moves_the_policy(one, setting)}
    assert counts[None] == len(teaching)
    zero = zero_of_batch(batch, setting)
    assert (zero is None) == (counts[None] > 0)
    if zero is not None:
        assert sum(zero.counts.values()) == zero.groups == len(drawn)
        assert zero.counts[zero.cause] == max(zero.counts.values())


@given(batches, settings, st.randoms(use_true_random=False))
def test_order_does_not_matter(drawn, setting, dice: random.Random):
    batch = batch_of(drawn)
    names = list(range(len(drawn)))
    dice.shuffle(names)
    other = [replace(one, group=names[one.group]) for one in batch]
    dice.shuffle(other)
    assert causes_of_batch(other, setting) == causes_of_batch(batch, setting)
    assert zero_of_batch(other, setting) == zero_of_batch(batch, setting)


def test_no_group_is_no_zero():
    assert zero_of_batch([], PLAIN) is None
    assert widened(None, []) is None
    assert widened((0.0, 1.0), [0.5, 2.0]) == (0.0, 2.0)


def test_message_counts_the_groups_and_says_what_to_change():
    batch = [
        *group_of([0, 0], group=0),
        *group_of([1, 1], group=1),
        *group_of([0, 0], group=2),
        *group_of([0, 0], truncated=True, group=3),
    ]
    message = zero_of_batch(batch, replace(FIRST, beta=0.04)).message
    assert message.startswith("No learning signal in step 3: 2 of 4 groups all wrong, 1 all correct, 1 all truncated. ")
    assert "every completion got 0, the lowest reward" in message
    assert "easier prompts" in message
    assert "Rewards differ between prompts, but an advantage compares within one." in message
    assert message.endswith("The KL term (beta=0.04) still pulls the policy towards its reference.")
    assert "would look the same" not in message


@pytest.mark.parametrize(
    ("group", "setting", "words"),
    [
        (group_of([0, 1], truncated=True), replace(MASKS, beta=0.04), "run into max_completion_length=32 are kept out"),
        (group_of([1, NAN]), FIRST, "return a number, not None"),
        (group_of([1, 1]), FIRST, "a reward function that always returns 1 would look the same"),
        (group_of([0, 0], ""), FIRST, "chat template"),
        (
            group_of([0, 0], truncated=True),
            replace(FIRST, longest=None),
            "reach max_completion_length before their end",
        ),
        (group_of([0, 0], "4"), FIRST, r"has the form \\boxed\s*\{; show"),
        (group_of([0, 0]), FIRST, "a reward function that always returns 0 would look the same"),
        (group_of([2, 2]), FIRST, "Every reward of this run so far is 2; make the reward function depend"),
        (group_of([0.5, 0.5]), PLAIN, "this run has seen 0 to 1"),
    ],
)
def test_message_of_a_cause(group, setting, words):
    message = zero_of_batch(group, setting).message
    assert words in message
    assert "Rewards differ" not in message
    assert ("KL" in message) == (setting.beta is not None and not setting.masks_truncated)


def record_of(*batches, writer="stablerank", settings=None, steps=()):
    return RunRecord(Path("run"), writer, settings or {}, tuple(steps), (), tuple(one for b in batches for one in b))


def stretches(record):
    return [(zero.first_step, zero.last_step, zero.cause, dict(zero.counts)) for zero in zeros_of_record(record)]


def test_neighbouring_steps_of_one_cause_are_one_stretch():
    right, wrong, mixed = ([1, 1], [0, 0], [0, 1])
    record = record_of(
        group_of(wrong, step=1) + group_of(wrong, step=1, group=1),
        group_of(wrong, step=2) + group_of(right, step=2, group=1) + group_of(wrong, step=2, group=2),
        group_of(mixed, step=3) + group_of(wrong, step=3, group=1),
        group_of(wrong, step=5),
        group_of(right, step=6),
    )
    assert stretches(record) == [
        (1, 2, "wrong", {"wrong": 4, "correct": 1}),
        (5, 5, "wrong", {"wrong": 1}),
        (6, 6, "correct", {"correct": 1}),
    ]
    assert zeros_of_record(record)[0].message.startswith(
        "No learning signal in steps 1 to 2: 4 of 5 groups all wrong, 1 all correct. "
    )


def test_settings_of_a_record_decide():
    trainer = {"mask_truncated_completions": True, "max_completion_length": 64, "beta": 0.1}
    batch = group_of([0, 1], truncated=True)
    assert stretches(record_of(batch)) == []
    (zero,) = zeros_of_record(record_of(batch, settings={"trainer": trainer}))
    assert zero.cause == "masked"
    assert "max_completion_length=64" in zero.message


def test_advantages_in_the_log_speak_for_tokens_that_the_completions_lack():
    batch, row = group_of([1, 1]), {"step": 3, "frac_reward_zero_std": 1.0}
    assert stretches(record_of(batch, steps=[{**row, "advantage_scale": 0.0}])) == [(3, 3, "correct", {"correct": 1})]
    assert stretches(record_of(batch, steps=[{**row, "advantage_scale": 0.8}])) == []


def test_answer_form_counts_for_trl_once_the_run_has_shown_it():
    unread, read = group_of([0, 0], "4", step=1), group_of([0, 1], BOXED, step=2)
    assert stretches(record_of(unread, writer="trl"))[0][2] == "wrong"
    assert stretches(record_of(unread, read, writer="trl"))[0][2] == "unreadable"
    assert stretches(record_of(unread))[0][2] == "unreadable"


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"frac_reward_zero_std": 0.5, "reward": 0.5, "reward_std": 0.5}, None),
        ({"frac_reward_zero_std": 1.0, "reward": 0.0, "reward_std": 0.0}, "wrong"),
        ({"frac_reward_zero_std": 1.0, "reward": 1.0, "reward_std": 0.0}, "correct"),
        ({"frac_reward_zero_std": 1.0, "reward": 3.0, "reward_std": 5.1}, "equal"),
        (
            {"frac_reward_zero_std": 1.0, "reward": 0.0, "reward_std": 0.0, "completions/clipped_ratio": 1.0},
            "truncated",
        ),
        ({"frac_reward_zero_std": 1.0, "reward": 1.0, "reward_std": 0.0, "completions/clipped_ratio": 1.0}, "correct"),
        # What TRL logs of seven rewards of 0.7, and of rewards that are all None.
        ({"frac_reward_zero_std": 0.0, "reward": 0.7, "reward_std": 6.4e-8}, "equal"),
        ({"frac_reward_zero_std": 0.0, "reward": None, "reward_std": None}, None),
    ],
)
def test_log_row_tells_what_it_can(row, cause):
    full = {"completions/clipped_ratio": 0.0, "step": 7, **row}
    wanted = [] if cause is None else [(7, 7, cause, {})]
    record = record_of(writer="trl", steps=[full])
    assert stretches(record) == wanted
    for zero in zeros_of_record(record):
        assert zero.message.startswith("No learning signal in step 7: groups ")


def test_log_row_of_a_masking_run():
    row = {"step": 1, "frac_reward_zero_std": 0.0, "reward": 0.5, "reward_std": 0.5, "completions/clipped_ratio": 1.0}
    settings = {"trainer": {"mask_truncated_completions": True}}
    assert stretches(record_of(steps=[row], settings=settings)) == [(1, 1, "masked", {})]
    assert stretches(record_of(steps=[row])) == []


def test_log_reward_is_placed_among_all_that_the_log_has_seen():
    rows = [
        {"step": step, "frac_reward_zero_std": float(reward in (0.5, 2.0)), "reward": reward, "reward_std": spread}
        for step, (reward, spread) in enumerate([(0.5, 0.0), (1.2, 0.4), (2.0, 0.0)], 1)
    ]
    assert stretches(record_of(writer="trl", steps=rows)) == [(1, 1, "wrong", {}), (3, 3, "correct", {})]


def test_log_knows_of_truncation_that_completions_of_trl_do_not_show():
    batch = group_of([0, 0])
    rows = [{"step": 3, "completions/clipped_ratio": ratio} for ratio in (1.0, 0.5)]
    found = [stretches(record_of(batch, writer="trl", steps=[row]))[0][2] for row in rows]
    assert found == ["truncated", "wrong"]


def test_steps_without_a_generation_do_not_part_a_stretch():
    rows = [{"step": 2, "loss": 0.1}]
    record = record_of(group_of([0, 0], step=1), group_of([0, 0], step=3), steps=rows)
    assert stretches(record) == [(1, 3, "wrong", {"wrong": 2})]


def test_every_cause_has_its_words():
    shown = {
        zero_of_batch(group, setting).cause
        for group, setting in (
            (group_of([0, 1], truncated=True), MASKS),
            (group_of([1, NAN]), PLAIN),
            (group_of([1, 1]), PLAIN),
            (group_of([0, 0], ""), PLAIN),
            (group_of([0, 0], truncated=True), PLAIN),
            (group_of([0, 0], "4"), PLAIN),
            (group_of([0, 0]), PLAIN),
            (group_of([0.5, 0.5]), PLAIN),
        )
    }
    assert shown == set(CAUSES)


def test_document_lists_the_causes_in_their_order():
    table = DOCUMENT.read_text().partition("| in a message |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\w.*?) \|", table, re.MULTILINE) == [LABELS[cause] for cause in CAUSES]


def test_document_shows_what_its_example_prints(capsys):
    (code, shown) = re.search(
        r"```python\n([^`]*zero_of_batch\(.*?)```\n\n```text\n(.*?)```", DOCUMENT.read_text(), re.S
    ).groups()
    exec(compile(code, str(DOCUMENT), "exec"), {})
    assert capsys.readouterr().out.split() == shown.split()
