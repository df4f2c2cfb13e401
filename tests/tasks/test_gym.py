import json
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from stablerank.errors import DataError, MissingExtraError
from stablerank.tasks import gym
from stablerank.tasks.files import split_of
from stablerank.tasks.specs import DataSpec, GymSpec

CHAIN = {"task": "chain_sum", "config": {"max_terms": 2, "max_digits": 1}}
GCD = {"task": "gcd", "config": {"max_value": 50}}


def spec(**settings):
    return TypeAdapter(DataSpec).validate_python({"kind": "gym", **settings})


def prompts(rows):
    return [row["prompt"] for row in rows]


def sentence(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_rows_hold_what_reasoning_gym_generates():
    import reasoning_gym

    row = spec(**GCD, problems=1).train_rows()[0]
    entry = json.loads(row["metadata"])["entry"]
    source = reasoning_gym.create_dataset("gcd", seed=0, size=1000, max_value=50)
    assert json.loads(json.dumps(source[entry["metadata"]["source_index"]])) == entry
    assert (row["prompt"], row["answer"]) == (entry["question"], entry["answer"])


@pytest.mark.parametrize("settings", [CHAIN, GCD])
def test_splits_are_fixed_disjoint_and_free_of_repetition(settings):
    made = spec(**settings, problems=500)
    rows = {"train": made.train_rows(), **{split: made.held_out_rows(split, 60) for split in ("validation", "test")}}
    for split, found in rows.items():
        assert found and len(set(prompts(found))) == len(found)
        assert {split_of(prompt, None) for prompt in prompts(found)} == {split}
    again = spec(**settings, problems=20)
    assert again.train_rows() == rows["train"][:20]
    assert again.held_out_rows("test", 5) == rows["test"][:5]


def test_a_task_with_few_questions_gives_them_all():
    made = spec(**CHAIN, problems=10_000)
    rows = [*made.train_rows(), *made.held_out_rows("validation", 999), *made.held_out_rows("test", 999)]
    assert len(rows) == 200  # two one-digit numbers and an operator


def test_another_seed_gives_another_order():
    assert prompts(spec(**GCD, problems=20).train_rows()) != prompts(
        spec(**GCD, problems=20, generator_seed=1).train_rows()
    )


def test_prompts_are_dressed_as_those_of_files():
    made = spec(**GCD, problems=1, chat=True, system="Be brief.", template="{prompt} Box it.")
    system, user = made.train_rows()[0]["prompt"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].endswith("final answer. Box it.")
    with pytest.raises(ValidationError, match=r"data\.chat=true"):
        spec(**GCD, system="Be brief.")


def test_unknown_tasks_and_settings_name_what_is_close():
    assert "chain_sum" in sentence(DataError, spec(task="chain_sums").train_rows)
    text = sentence(DataError, spec(task="gcd", config={"max_values": 9}).train_rows)
    assert "data.config.max_values" in text and "close: max_value" in text and "min_numbers" in text
    for ours in ("seed", "size"):
        assert f"data.config.{ours}" in sentence(DataError, spec(task="gcd", config={ours: 1}).train_rows)


@pytest.mark.parametrize("config", [{"min_numbers": 1}, {"max_value": "many"}, {"max_value": None}])
def test_settings_that_the_task_refuses(config):
    assert "refused by the gym task 'gcd'" in sentence(DataError, spec(task="gcd", config=config).train_rows)


def test_a_split_without_a_problem_is_a_sentence():
    narrow = {"max_value": 2}  # four questions
    empty = [split for split in ("validation", "test") if not gym.problems("gcd", narrow, 0, split, 9)]
    assert "data.config" in sentence(DataError, spec(task="gcd", config=narrow).held_out_rows, empty[0], 9)


def test_tasks_that_cannot_be_repeated_or_stored_are_refused():
    assert "other problems each time" in sentence(DataError, gym.problems, "acre", {}, 0, "train", 1)
    assert "stored as JSON" in sentence(DataError, gym.problems, "rearc", {}, 0, "train", 1)


def test_a_missing_extra_is_a_sentence_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    assert "pip install 'stablerank[tasks]'" in sentence(MissingExtraError, spec(**GCD).train_rows)


def test_recipes_on_other_data_do_not_load_it():
    code = "import sys, stablerank.tasks.specs; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_spec_is_one_of_the_data_kinds():
    assert isinstance(spec(**GCD), GymSpec)
