"""The recipe: what loads, what is refused and how, and that no loss-shaping setting of TRL is left implicit."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments
from trl import GRPOConfig

from stablerank.errors import RecipeError
from stablerank.training.grpo import grpo_config
from stablerank.training.language_model import recipe as language_model
from stablerank.training.preference import recipe as preference
from stablerank.training.recipe import LOSS_SETTINGS, TRAINER, load_recipe, parse_recipe
from stablerank.training.sections import FIXED, OWNED_ELSEWHERE, trl_arguments

RECIPES = Path(__file__).parents[2] / "recipes"
DEMO = RECIPES / "demo.yaml"
SMALL = {
    "model": {"path": "zoo:arith-student"},
    "data": {"kind": "arithmetic"},
    "reward": {"kind": "math_verify"},
    "trainer": {"max_steps": 12, "save_steps": 12},
    "output": "runs/x",
}
NOT_THE_LOSS = {
    "cache_implementation": "how keys and values are stored while sampling",
    "ds3_gather_for_generation": "DeepSpeed",
    "log_completions": "logging",
    "log_multimodal": "logging",
    "log_unique_prompts": "logging",
    "num_completions_to_print": "logging",
    "max_tool_calling_iterations": "tools, which no reward of ours has",
    "num_generations_eval": "TRL's own evaluation, which is off",
    "pad_to_multiple_of": "padding is masked",
    "remove_unused_columns": "columns, not numbers",
    "transformers_continuous_batching_config": "sampling engine",
    "use_transformers_continuous_batching": "sampling engine",
    "use_transformers_paged": "sampling engine",
    "use_vllm": "sampling engine",
    "vllm_enable_sleep_mode": "sampling engine",
    "vllm_gpu_memory_utilization": "sampling engine",
    "vllm_group_port": "sampling engine",
    "vllm_importance_sampling_cap": "old name of vllm_importance_sampling_clip_max",
    "vllm_max_model_length": "sampling engine",
    "vllm_mode": "sampling engine",
    "vllm_model_impl": "sampling engine",
    "vllm_server_base_url": "sampling engine",
    "vllm_server_host": "sampling engine",
    "vllm_server_port": "sampling engine",
    "vllm_server_timeout": "sampling engine",
    "vllm_structured_outputs_regex": "sampling engine",
    "vllm_tensor_parallel_size": "sampling engine",
}
"""Settings of TRL that may stay implicit, and why."""
OWNED = {**OWNED_ELSEWHERE, **TRAINER.owned}


def small(**trainer):
    return {**SMALL, "trainer": {**SMALL["trainer"], **trainer}}


def sentence(raw):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw, "my.yaml")
    return one_sentence(caught, "my.yaml: ")


def one_sentence(caught, start=""):
    text = str(caught.value)
    assert text.startswith(start)
    assert "\n" not in text
    assert text.endswith(".")
    assert ";" in text, "a remedy follows the fault"
    return text


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[!g]*.yaml")), ids=lambda path: path.stem)  # not those for GPUs
def test_our_recipes_load_and_pass_trl(path, tmp_path):
    recipe = load_recipe(path)
    configure = grpo_config if recipe.objective == "grpo" else trl_arguments
    config = configure(recipe, str(tmp_path / "checkpoints"))
    assert config.max_steps == recipe.max_steps
    assert {key: getattr(config, key) for key in recipe.trainer} == recipe.trainer


@pytest.mark.parametrize("raw", [yaml.safe_load(DEMO.read_text()), SMALL], ids=["demo", "small"])
def test_the_resolved_recipe_is_plain_data_that_means_the_same(raw, tmp_path):
    recipe = parse_recipe(raw)
    plain = json.loads(json.dumps(recipe.resolved()))
    again = parse_recipe(plain)
    assert again.resolved() == recipe.resolved() == parse_recipe(yaml.safe_load(yaml.safe_dump(plain))).resolved()
    first, second = (grpo_config(r, str(tmp_path)).to_dict() for r in (recipe, again))
    assert first == second


def test_the_resolved_recipe_writes_every_loss_setting_out():
    assert LOSS_SETTINGS.keys() <= parse_recipe(SMALL).resolved()["trainer"].keys()


@pytest.mark.parametrize("pattern", ["#### (.*)", "Answer #(.*)", "'#### (.*)'"])
def test_an_override_has_no_comments(pattern):
    recipe = load_recipe(DEMO, ["data={kind: file, path: rows.jsonl}", f"data.answer_pattern={pattern}"])
    assert recipe.data.answer_pattern == pattern.strip("'")


def test_overrides_reach_any_value_and_leave_the_rest(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SMALL))
    recipe = load_recipe(
        tmp_path / "r.yaml",
        [
            "optimiser.learning_rate=1e-4",
            "trainer.temperature=5e-1",
            "adapter.kind=lora",
            "adapter.targets=[q_proj, v_proj]",
            "evaluation.max_new_tokens=null",
            "output=runs/a=b",
            "seed=7",
        ],
    )
    assert recipe.optimiser.learning_rate == 1e-4
    assert recipe.loss_settings["temperature"] == 0.5
    assert recipe.adapter.targets == ["q_proj", "v_proj"]
    assert recipe.evaluation.max_new_tokens is None
    assert recipe.output == "runs/a=b"
    assert recipe.seed == 7
    assert recipe.data == parse_recipe(SMALL).data


def test_numbers_in_scientific_notation_are_numbers_in_the_file_too():
    assert yaml.safe_load("1e-1") == "1e-1", "the trap of YAML 1.1"
    recipe = parse_recipe({**small(beta="1e-1"), "optimiser": {"learning_rate": "1e-4"}})
    assert recipe.trainer["beta"] == 0.1
    assert recipe.optimiser.learning_rate == 1e-4


REFUSED = {
    "unknown section": ({**SMALL, "optimizer": {}}, ["'optimizer'", "mend the spelling"]),
    "unknown key": ({**SMALL, "adapter": {"kind": "lora", "rank": 4}}, ["'adapter.rank'", "mend the spelling"]),
    "missing section": ({k: v for k, v in SMALL.items() if k != "model"}, ["'model' is missing", "add it"]),
    "missing kind": ({**SMALL, "adapter": {"r": 4}}, ["'adapter.kind' is missing", "add it"]),
    "unknown kind": ({**SMALL, "data": {"kind": "sql"}}, ["data=", "'sql'", "'arithmetic', 'file'"]),
    "wrong type": ({**SMALL, "seed": "seven"}, ["seed='seven'", "valid integer"]),
    "wrong type in a union": (
        {**SMALL, "adapter": {"kind": "lora", "targets": 3}},
        ["adapter.targets=3", "valid string"],
    ),
    "a peak without a curve": (
        {**SMALL, "evaluation": {"peak": True}},
        ["evaluation.peak reads the curve", "set every"],
    ),
    "out of range": ({**SMALL, "adapter": {"kind": "lora", "r": 0}}, ["adapter.r=0", "greater than or equal to 1"]),
    "section is a value": ({**SMALL, "model": None}, ["model=None", "dictionary"]),
    "unknown objective": ({**SMALL, "objective": "ppo"}, ["objective='ppo'", "'grpo'"]),
    "not a trainer key": (small(learning_rat=1), ["trainer.learning_rat ", "GRPOConfig"]),
    "trainer type": (small(max_steps="many"), ["trainer.max_steps='many'", "valid integer"]),
    "trainer value": (small(loss_type="ppo"), ["trainer.loss_type='ppo'", "'dapo'"]),
    "trainer range": (small(num_iterations=0), ["trainer.num_iterations=0", "greater than 0"]),
    "no group": (small(num_generations=1), ["trainer.num_generations=1", "greater than or equal to 2"]),
    "no length": ({**SMALL, "trainer": {}}, ["trainer.max_steps is missing", "such as 60"]),
    "half a cycle": (small(num_iterations=5), ["trainer.save_steps=12", "multiple of 5", "round it"]),
    "pattern without a group": (
        {**SMALL, "data": {"kind": "file", "path": "x.jsonl", "answer_pattern": "####"}},
        ["data.answer_pattern '####'", "brackets"],
    ),
    "broken pattern": (
        {**SMALL, "data": {"kind": "file", "path": "x.jsonl", "answer_pattern": "(a"}},
        ["data.answer_pattern '(a'", "mend it"],
    ),
    "template without a prompt": (
        {**SMALL, "data": {"kind": "file", "path": "x.jsonl", "template": "Q:"}},
        ["data.template='Q:'", "prompt"],
    ),
    "system without a chat": (
        {**SMALL, "data": {"kind": "file", "path": "x.jsonl", "system": "Be brief."}},
        ["data.system", "data.chat=true"],
    ),
    "reward without a function": (
        {**SMALL, "reward": {"kind": "python", "ref": "reward.py"}},
        ["reward.ref='reward.py'", "match"],
    ),
}


@pytest.mark.parametrize(("raw", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_recipe_gets_one_sentence_with_key_value_and_remedy(raw, words):
    text = sentence(raw)
    for word in words:
        assert word in text


@pytest.mark.parametrize("key", OWNED)
def test_a_setting_that_something_else_decides_is_refused_with_its_owner(key):
    text = sentence(small(**{key: 1}))
    assert f"trainer.{key} " in text
    assert OWNED[key] in text


@pytest.mark.parametrize("key", FIXED)
def test_a_setting_that_the_run_folder_fixes_is_refused(key):
    assert f"trainer.{key} is fixed" in sentence(small(**{key: 1}))


def test_owners_are_fields_of_the_recipe():
    """An owner that is a path names a real field, so that the sentence can be followed."""
    plain = parse_recipe(SMALL).resolved()
    for owner in {owner for owner in OWNED.values() if " " not in owner}:
        section, _, key = owner.partition(".")
        assert section in plain
        assert not key or key in plain[section]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"a: [1", "is not YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\x00", "is not YAML"),
        (b"", "NoneType, not sections"),
        (b"- 1\n", "list, not sections"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, words):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    text = one_sentence(caught)
    assert str(path) in text
    assert words in text


@pytest.mark.parametrize("override", ["seed", "=1", "seed.x=1", "model.path.x=1", "seed=[1"])
def test_a_bad_override(override):
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, [override])
    assert repr(override) in one_sentence(caught)


def test_no_setting_of_trl_that_shapes_the_loss_is_left_implicit():
    """A TRL release that adds a setting fails here: write it into LOSS_SETTINGS, or say why it may stay implicit."""
    inherited = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    fields = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    # TRL's own settings, and those of transformers to which TRL gives another default.
    of_trl = {name for name, default in fields.items() if name not in inherited or default != inherited[name]}
    explicit = {*LOSS_SETTINGS, *FIXED, *OWNED}
    assert of_trl - explicit == NOT_THE_LOSS.keys() & of_trl
    assert NOT_THE_LOSS.keys() <= of_trl, "every exemption is still needed"
    assert explicit <= fields.keys()


def test_where_our_setting_differs_from_trls_default():
    """Each difference is deliberate: defaults that TRL moved silently, and the rhythm of checkpoints."""
    defaults = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    differing = {key for key, value in LOSS_SETTINGS.items() if defaults[key] != value}
    assert differing == {
        "use_bias_correction_kl",
        "max_completion_length",
        "gradient_checkpointing",
        "save_steps",
    }


COUNTS = st.integers(1, 6)


@given(COUNTS, st.none() | COUNTS, COUNTS, st.integers(1, 24))
def test_a_checkpoint_step_is_accepted_exactly_when_no_cycle_is_open(accumulation, per_generation, iterations, step):
    """The oracle counts micro-steps as TRL does: it samples afresh at every multiple of generation x iterations."""
    fresh_every = (per_generation or accumulation) * iterations
    is_open = (step * accumulation) % fresh_every != 0
    raw = small(
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        num_iterations=iterations,
        save_steps=step,
        max_steps=step,
    )
    if is_open:
        assert f"trainer.save_steps={step}" in sentence(raw)
    else:
        assert parse_recipe(raw).max_steps == step


def test_the_default_checkpoint_step_is_checked_too():
    raw = {**SMALL, "trainer": {"max_steps": 12, "num_iterations": 3}}
    assert "trainer.save_steps=10 is not a multiple of 3" in sentence(raw)


def test_what_trl_itself_refuses_is_one_sentence():
    with pytest.raises(RecipeError) as caught:
        grpo_config(parse_recipe(small(per_device_train_batch_size=7)), "unused")
    assert "num_generations" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the other objectives ----------------------------------------------------------------------------------------

LOSSES = {"clm": language_model, "dpo": preference}
NOT_THEIR_LOSS = {
    "activation_offloading": "where activations are kept",
    "dataset_num_proc": "processes, not numbers",
    "pad_to_multiple_of": "padding is masked",
}


def losses(objective, **sections):
    return {
        "objective": objective,
        "model": {"path": "zoo:arith-student"},
        "data": {"kind": "arithmetic"},
        "trainer": {"max_steps": 12},
        "output": "runs/x",
        **sections,
    }


@pytest.mark.parametrize("objective", LOSSES)
def test_another_objective_resolves_to_plain_data_that_means_the_same(objective, tmp_path):
    recipe = parse_recipe(losses(objective, optimiser={"learning_rate": "1e-4"}))
    again = parse_recipe(json.loads(json.dumps(recipe.resolved())))
    assert again == parse_recipe(recipe.resolved())
    first, second = (trl_arguments(r, str(tmp_path)).to_dict() for r in (recipe, again))
    assert first == second
    assert first["learning_rate"] == 1e-4
    assert LOSSES[objective].LOSS_SETTINGS.keys() <= recipe.resolved()["trainer"].keys()


@pytest.mark.parametrize("objective", LOSSES)
def test_no_setting_of_trl_that_shapes_another_loss_is_left_implicit(objective):
    module = LOSSES[objective]
    inherited = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    fields = {field.name: field.default for field in dataclasses.fields(module.TRAINER.config)}
    of_trl = {name for name, default in fields.items() if name not in inherited or default != inherited[name]}
    explicit = {*module.LOSS_SETTINGS, *FIXED, *OWNED_ELSEWHERE, *module.TRAINER.owned}
    assert of_trl - explicit == NOT_THEIR_LOSS.keys() & of_trl
    assert explicit <= fields.keys()


REFUSED_LOSSES = {
    "a reward": (losses("clm", reward={"kind": "math_verify"}), ["'reward'", "remove it"]),
    "packing": (losses("clm", trainer={"max_steps": 1, "packing": True}), ["trainer.packing", "remove it"]),
    "no beta": (losses("dpo", trainer={"max_steps": 1, "beta": 0}), ["trainer.beta=0", "greater than 0"]),
    "ahead": (
        losses("dpo", trainer={"max_steps": 1, "precompute_ref_log_probs": True}),
        ["trainer.precompute_ref_log_probs", "check of the reference"],
    ),
    "no such key": (losses("dpo", trainer={"max_steps": 1, "betta": 1}), ["trainer.betta", "DPOConfig"]),
    "pairs of nothing": (losses("dpo", data={"kind": "sql"}), ["data=", "'arithmetic', 'pairs'"]),
}


@pytest.mark.parametrize(("raw", "words"), REFUSED_LOSSES.values(), ids=REFUSED_LOSSES)
def test_a_bad_recipe_of_another_objective(raw, words):
    text = sentence(raw)
    for word in words:
        assert word in text
