import pytest
from pydantic import ValidationError

from stablerank.errors import RewardError
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.distillation.model_teacher import ModelTeacher
from stablerank.rewards.distillation.server_teacher import ServerTeacher
from stablerank.rewards.distillation.spec import DistillationSpec
from stablerank.tasks.files import data_folder

HERE = {"path": "zoo:arith-teacher"}
THERE = {"url": "http://localhost:8000", "model": "teacher", "tokenizer": "zoo:arith-teacher"}


def spec(**fields):
    return DistillationSpec.model_validate({"kind": "distillation", **fields})


def test_a_teacher_in_this_process(zoo_tokenizer):
    chosen = spec(teacher={**HERE, "device": "cpu"}, temperature=0.7, clip=5)
    reward = chosen.build(zoo_tokenizer)
    assert isinstance(reward.teacher, ModelTeacher)
    assert (reward.temperature, reward.clip, reward.density) == (0.7, 5.0, "token")
    assert reward.own_forward == (
        "a forward pass of the teacher zoo:arith-teacher (0.8M parameters, float32, cpu) over every prompt and "
        "completion"
    )
    assert chosen.default_credit == CreditSpec(centre="none", scale="none") and not chosen.judges


def test_a_teacher_behind_a_server_is_reached_at_load(server, zoo_tokenizer):
    reward = spec(server={**THERE, "url": server.url}).build(zoo_tokenizer)
    assert isinstance(reward.teacher, ServerTeacher) and reward.temperature == 1.0
    assert [question["prompt"] for _, question in server.questions] == [[0, len(zoo_tokenizer) - 1]]
    assert reward.own_forward.startswith(f"a request a completion to {server.url}, where the teacher teacher")
    server.answer = lambda question: (400, b"Token id 100 is out of vocabulary")
    with pytest.raises(RewardError, match=r"HTTP 400: Token id 100 is out of vocabulary"):
        spec(server={**THERE, "url": server.url}).build(zoo_tokenizer)


@pytest.mark.data
def test_the_tokenizer_of_a_served_teacher_is_compared(server, zoo_tokenizer):
    with pytest.raises(RewardError, match="the teacher teacher reads token id 0 as '<unk>'"):
        spec(server={**THERE, "url": server.url, "tokenizer": str(data_folder() / "stories260K")}).build(zoo_tokenizer)
    assert server.questions == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "reward.teacher and reward.server: neither given"),
        ({"teacher": HERE, "server": THERE}, "reward.teacher and reward.server: both given"),
        ({"server": THERE, "temperature": 0.7}, "reward.temperature=0.7 does not go with reward.server"),
        ({"teacher": HERE, "temperature": 0}, "greater than 0"),
        ({"teacher": HERE, "clip": 0}, "greater than 0"),
        ({"teacher": {**HERE, "dtype": "float16"}}, "float32"),
        ({"server": {**THERE, "url": "localhost:8000"}}, "should match pattern"),
        ({"server": {**THERE, "url": "http://me:secret@host"}}, "should match pattern"),
        ({"server": {**THERE, "retries": -1}}, "greater than or equal to 0"),
        ({"server": {"url": "http://h", "model": "m"}}, "Field required"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        spec(**fields)
