"""Runs read as rows: a real one of ours and a real one of plain TRL, whole, killed, doubled and damaged."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer

from stablerank.errors import RunFolderError
from stablerank.runs.record import read_record
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.training.recipe import load_recipe
from stablerank.training.session import start
from stablerank.zoo.resolve import resolve

WEIGHTS = (0.5, 0.03125)
BATCH, GROUP = 8, 4
GENERATED = [1, 3, 5]
"""Every batch is used for two of the six steps."""


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Two steps of the demo, in small."""
    output = tmp_path_factory.mktemp("ours") / "run"
    overrides = [
        "trainer.max_steps=2", "trainer.save_steps=2", "trainer.per_device_train_batch_size=8",
        "trainer.num_generations=4", "evaluation.problems=8", "evaluation.curve_problems=4", "evaluation.every=1",
        "geometry.every=1", f"output={output}",
    ]  # fmt: skip
    return start(load_recipe(Path(__file__).parents[2] / "recipes" / "demo.yaml", overrides)).path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Six steps of TRL's own trainer, and every batch that its reward functions saw."""
    output, seen = tmp_path_factory.mktemp("plain"), []

    def ends_well(prompts, completions, completion_ids, **_):
        seen.append({"prompt": prompts, "text": completions, "ends_well": [len(ids) % 3 for ids in completion_ids]})
        return seen[-1]["ends_well"]

    def longer(completion_ids, **_):
        seen[-1]["longer"] = [len(ids) for ids in completion_ids]
        return seen[-1]["longer"]

    set_seed(0)
    config = GRPOConfig(
        output_dir=str(output), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=6,
        save_steps=2, logging_steps=1, per_device_train_batch_size=BATCH, num_generations=GROUP, num_iterations=2,
        max_completion_length=24, temperature=2.0, reward_weights=list(WEIGHTS), log_completions=True,
        save_total_limit=None, gradient_checkpointing=False,
    )  # fmt: skip
    place = resolve("zoo:arith-student")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(place),
        reward_funcs=[ends_well, longer],
        args=config,
        train_dataset=Dataset.from_list(ArithmeticSpec(kind="arithmetic").train_rows()[:64]),
        processing_class=AutoTokenizer.from_pretrained(place),
    )
    trainer.train()
    return output, seen, trainer.state.log_history


@pytest.fixture
def copied(ours, tmp_path):
    return Path(shutil.copytree(ours, tmp_path / "run"))


@pytest.fixture
def copied_plain(plain, tmp_path):
    """Without the weights of checkpoints, which nobody reads."""
    return Path(shutil.copytree(plain[0], tmp_path / "plain", ignore=shutil.ignore_patterns("*.safetensors", "*.pt")))


def rewrite(path, change):
    """``change`` the JSON of a file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def history_of(folder):
    return folder / "checkpoint-6" / "trainer_state.json"


def test_a_run_of_ours_reads_as_its_tables_say(ours):
    record = read_record(ours)
    assert (record.source, record.writer) == (ours, "stablerank")
    assert record.settings == json.loads((ours / "manifest.json").read_text())["recipe"]
    assert list(record.steps) == [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record.steps] == [1, 2]
    phases = [(row["step"], row["phase"]) for row in record.evaluations]
    assert phases == [(0, "before"), (1, "curve"), (2, "curve"), (2, "after")]
    assert record.evaluations[0].keys() >= {"pass_at_1", "low", "high", "mean_length", "truncated"}


def test_completions_of_ours_are_those_that_trained(ours):
    table = pd.read_parquet(ours / "rollouts" / "all.parquet")
    trained = table[table.phase == "train"].sort_values(["step", "row"])
    found = pd.DataFrame([dataclasses.asdict(one) for one in read_record(ours).completions])
    expected = trained.rename(columns={"completion": "text"})[list(found.columns)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert found.groupby(["step", "group"]).size().tolist() == [4, 4, 4, 4]


def test_a_run_that_has_just_begun_is_a_record_without_rows(ours, tmp_path):
    shutil.copy(ours / "manifest.json", tmp_path)
    record = read_record(tmp_path)
    assert (record.steps, record.evaluations, record.completions) == ((), (), ())


def test_a_killed_run_reads_as_far_as_it_got(ours, copied):
    (copied / "summary.json").unlink()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with (copied / name).open("a") as file:
            file.write('{"step": 3, "phase": "cur')
    assert dataclasses.replace(read_record(copied), source=ours) == read_record(ours)


def test_rows_come_in_order_and_repeated_steps_once(copied):
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    again = json.dumps({"step": 1, "reward": 77.0})
    (copied / "metrics.jsonl").write_text("\n".join([lines[1], lines[0], again]) + "\n")
    before = json.dumps({"step": 0, "phase": "before", "pass_at_1": 0.75})
    with (copied / "evaluations.jsonl").open("a") as file:
        file.write(before + "\n")
    record = read_record(copied)
    assert [row["step"] for row in record.steps] == [1, 2]
    assert record.steps[0] == {**json.loads(lines[0]), "reward": 77.0}
    assert [row["phase"] for row in record.evaluations] == ["before", "curve", "curve", "after"]
    assert record.evaluations[0]["pass_at_1"] == 0.75


def test_numbers_that_are_none_are_numbers_however_written(copied):
    row = '{"step": 3, "kl": NaN, "loss": "NaN", "grad_norm": "-Infinity", "reward": "inf", "note": "banana"}\n'
    (copied / "metrics.jsonl").write_text(row)
    (found,) = read_record(copied).steps
    assert math.isnan(found["kl"]) and math.isnan(found["loss"])
    assert (found["grad_norm"], found["reward"], found["note"]) == (-math.inf, math.inf, "banana")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"step": 1, "lo\n{"step": 2}\n'),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("metrics.jsonl", '{"step": null}\n'),
        ("evaluations.jsonl", '{"step": 1}\n'),
        ("rollouts/all.parquet", "not Parquet"),
        ("manifest.json", "{"),
    ],
)
def test_a_damaged_file_of_ours_is_named_in_one_sentence(copied, name, text):
    (copied / name).write_text(text)
    with pytest.raises(RunFolderError) as raised:
        read_record(copied)
    message = str(raised.value)
    assert name.partition("/")[0] in message and message.endswith(".") and "\n" not in message


def test_steps_of_trl_are_its_rows_with_a_loss(plain):
    output, _, history = plain
    record = read_record(output)
    assert (record.writer, record.settings, record.evaluations) == ("trl", {}, ())
    assert [row["step"] for row in record.steps] == [1, 2, 3, 4, 5, 6]
    assert list(record.steps) == [row for row in history if "loss" in row]


def test_completions_of_trl_are_those_that_its_rewards_saw(plain):
    output, seen, _ = plain
    found = read_record(output).completions
    assert len(list((output / "completions").iterdir())) == 6, "TRL writes a batch again when it is used again"
    assert [one.step for one in found] == [step for step in GENERATED for _ in range(BATCH)]
    assert [one.text for one in found] == [text for batch in seen for text in batch["text"]]
    assert [one.group for one in found] == [0, 0, 0, 0, 1, 1, 1, 1] * len(GENERATED)
    assert all((one.tokens, one.truncated) == (0, False) for one in found)
    rewards = [np.array([batch["ends_well"], batch["longer"]]).T @ WEIGHTS for batch in seen]
    np.testing.assert_allclose([one.reward for one in found], np.concatenate(rewards), rtol=1e-4)
    groups = np.reshape([one.advantage for one in found], (-1, GROUP))
    np.testing.assert_allclose(groups.mean(1), 0, atol=1e-5)
    assert (groups.std(1) > 0.5).any()


def test_weights_that_the_log_does_not_tell_are_one_each(plain):
    output, seen, _ = plain
    found = read_record(output / "checkpoint-2").completions
    assert [one.reward for one in found] == [
        a + b for a, b in zip(seen[0]["ends_well"], seen[0]["longer"], strict=True)
    ]


def test_a_run_of_trl_is_found_from_its_file_its_checkpoint_and_its_folder(plain, monkeypatch):
    output, _, _ = plain
    whole = read_record(output)
    checkpoint = output / "checkpoint-6"
    for path in (checkpoint, checkpoint / "trainer_state.json"):
        assert read_record(path) == dataclasses.replace(whole, source=path)
    monkeypatch.chdir(checkpoint)
    assert read_record(Path("trainer_state.json")).completions == whole.completions
    early = read_record(output / "checkpoint-4")
    assert early.steps == whole.steps[:4]
    assert [one.step for one in early.completions] == [1] * BATCH + [3] * BATCH


def test_the_state_that_got_furthest_is_read(copied_plain):
    own = copied_plain / "trainer_state.json"
    shutil.copy(copied_plain / "checkpoint-2" / "trainer_state.json", own)
    (copied_plain / "checkpoint-best").mkdir()
    shutil.copy(own, copied_plain / "checkpoint-best")
    assert len(read_record(copied_plain).steps) == 6
    shutil.copy(history_of(copied_plain), own)
    rewrite(own, lambda state: state["log_history"].append({"step": 7, "loss": 0.5}))
    assert read_record(copied_plain).steps[-1] == {"step": 7, "loss": 0.5}


def test_rows_of_one_step_are_merged_and_those_without_a_loss_are_none(copied_plain):
    whole = read_record(copied_plain)

    def change(state):
        history = state["log_history"]
        first = history.pop(0)
        trained = {key: first.pop(key) for key in ("loss", "grad_norm")}
        history += [first, {"step": 9, "eval_loss": 1.0, "eval_reward": 0.5}, {**trained, "step": 1}]

    rewrite(history_of(copied_plain), change)
    found = read_record(copied_plain)
    assert dataclasses.replace(found, losses=whole.losses) == whole
    assert [row["eval_loss"] for row in found.losses if "eval_loss" in row] == [1.0]


def test_rewards_that_a_function_left_out_are_left_out(copied_plain):
    """With weights of one, as where functions leave completions out the log does not tell others."""
    place = copied_plain / "completions" / "completions_00001.parquet"
    table = pd.read_parquet(place)
    table["ends_well"] = [None, 1.0, math.nan, 2.0] + [0.0] * 4
    table["longer"] = [None, 5.0, 6.0, None] + [0.0] * 4
    table.to_parquet(place)
    found = [one.reward for one in read_record(copied_plain / "checkpoint-2").completions]
    np.testing.assert_array_equal(found, [math.nan, 6.0, 6.0, 2.0] + [0.0] * 4)


def test_chat_completions_are_what_the_assistant_said(copied_plain):
    place = copied_plain / "completions" / "completions_00001.parquet"
    table = pd.read_parquet(place)
    texts = table.completion.tolist()
    chat = [[{"role": "assistant", "content": text}, {"role": "tool", "content": "4"}] for text in texts]
    table["completion"] = chat
    table["prompt"] = [[{"role": "user", "content": prompt}] for prompt in table.prompt]
    table.to_parquet(place)
    found = read_record(copied_plain).completions[:BATCH]
    assert [(one.group, one.text) for one in found] == [(i // GROUP, text) for i, text in enumerate(texts)]


def test_completions_that_were_not_kept_are_none(copied_plain):
    shutil.rmtree(copied_plain / "completions")
    record = read_record(copied_plain)
    assert len(record.steps) == 6 and record.completions == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"log_history": 3}', '{"log_history": [{"loss": 1}]}', '{"log_history": ["row"]}']
)
def test_a_damaged_state_is_named_in_one_sentence(tmp_path, text):
    place = tmp_path / "trainer_state.json"
    place.write_text(text)
    for path in (place, tmp_path):
        with pytest.raises(RunFolderError, match=r"trainer_state\.json cannot be read \(.+\); mend it, or .+\.$"):
            read_record(path)


def test_damaged_completions_of_a_step_that_trained_are_named(copied_plain):
    place = copied_plain / "completions" / "completions_00003.parquet"
    os.truncate(place, 100)
    with pytest.raises(RunFolderError, match=r"completions_00003\.parquet cannot be read"):
        read_record(copied_plain)
    assert len(read_record(copied_plain / "checkpoint-2").completions) == BATCH, "its record ends before that step"


def test_what_is_no_run_is_refused_with_the_remedy(tmp_path):
    for path, lack in ((tmp_path, "holds neither"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(RunFolderError, match=rf"{lack}.*; give the folder that `stablerank train` wrote.*\.$"):
            read_record(path)
