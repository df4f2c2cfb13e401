import pkgutil
from importlib import import_module
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import stablerank.rewards
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.specs import MathVerifySpec, PythonSpec, RewardSpec

SPEC = TypeAdapter(RewardSpec)


def test_every_spec_of_the_room_can_be_named_in_a_recipe():
    for module in pkgutil.walk_packages(stablerank.rewards.__path__, "stablerank.rewards."):
        import_module(module.name)
    kinds = {get_args(spec.model_fields["kind"].annotation)[0] for spec in RewardSpecBase.__subclasses__()}
    assert len(kinds) > 10
    assert kinds <= set(SPEC.json_schema()["discriminator"]["mapping"])


def test_kind_chooses_the_spec_and_the_spec_builds(tokenizer):
    spec = SPEC.validate_python({"kind": "math_verify", "answer_column": "solution"})
    assert isinstance(spec, MathVerifySpec)
    reward = spec.build(tokenizer)
    assert (reward.name, reward.answer_column) == ("math_verify", "solution")


def test_a_python_reward_is_built_from_its_file(tmp_path, tokenizer):
    (tmp_path / "own.py").write_text("def brevity(completions, **_):\n    return [-len(c) for c in completions]\n")
    spec = SPEC.validate_python({"kind": "python", "ref": f"{tmp_path}/own.py:brevity"})
    assert isinstance(spec, PythonSpec) and spec.build(tokenizer).name == "brevity"


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "nothing"},
        {"kind": "math_verify", "colunm": "answer"},
        {"kind": "math_verify", "answer_column": ""},
        {"kind": "python"},
        {"kind": "python", "ref": "own.py"},
        {"kind": "python", "ref": "own:brevity"},
        {"kind": "python", "ref": "own.py:two words"},
    ],
)
def test_what_means_nothing_is_refused(data):
    with pytest.raises(ValidationError):
        SPEC.validate_python(data)
