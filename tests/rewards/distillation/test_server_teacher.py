import json
import socket
import time

import pytest
import torch

from stablerank.errors import RewardError
from stablerank.rewards.distillation.model_teacher import ModelTeacher
from stablerank.rewards.distillation.server_teacher import PARALLEL, ServerTeacher

PAIR = [[5, 6]], [[7, 8, 9]]


def impatient(server, **changes):
    return ServerTeacher(server.url, "teacher", **{"timeout": 5.0, "retries": 2, "pause": 0.01, **changes})


@pytest.mark.parametrize("protocol", ["vllm", "openai"])
@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_equals_the_teacher_in_this_process(server, zoo_teacher, sequences, protocol, suffix):
    prompts, completions, width = sequences
    found = ServerTeacher(server.url + suffix, "teacher", protocol).logprobs(prompts, completions, width + 1)
    expected = ModelTeacher(zoo_teacher, "teacher").logprobs(prompts, completions, width + 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert {path for path, _ in server.questions} == {"/v1/completions"}


def test_the_question_says_all_that_could_bend_the_answer(server):
    impatient(server).logprobs(*PAIR, 3)
    assert server.questions[0][1] == {
        "model": "teacher", "prompt": [5, 6, 7, 8, 9], "prompt_logprobs": 1, "max_tokens": 1,
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip


def test_what_passes_is_waited_for(server):
    well, trouble = server.well, [(503, b"starting"), (200, b"<html>proxy</html>"), ConnectionError(), (429, b"busy")]
    server.answer = lambda question: trouble.pop(0) if trouble else well(question)
    found = impatient(server, retries=4).logprobs(*PAIR, 3)
    assert (found < 0).all() and len(server.questions) == 5


def test_pauses_double(server):
    server.answer = lambda question: (500, b"")
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"in 4 of 4 tries \(HTTP 500: \); see to the server"):
        impatient(server, retries=3, pause=0.1).logprobs(*PAIR, 3)
    assert 0.7 <= time.monotonic() - started < 1.5


def test_a_server_that_went_away_is_one_sentence(zoo_teacher, server):
    teacher = impatient(server)
    teacher.logprobs(*PAIR, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        teacher.url = teacher.url.replace(str(server.server_port), str(free.getsockname()[1]))
    with pytest.raises(RewardError) as refusal:
        teacher.logprobs(*PAIR, 3)
    assert str(refusal.value) == (
        f"the teacher teacher at {teacher.url} gave no log-probabilities in 3 of 3 tries (ConnectionRefusedError: "
        "[Errno 111] Connection refused); see to the server, then start again, a run that had begun with --resume"
    )


def test_a_hanging_and_a_dripping_server_are_given_up(server):
    slow = impatient(server, timeout=0.2, retries=1)
    whole = server.well({"prompt": [5, 6, 7, 8, 9]})[1]
    for answer in (lambda question: time.sleep(1) or (200, whole), lambda question: (200, whole, 0.1)):
        server.answer = answer
        started = time.monotonic()
        with pytest.raises(RewardError, match=r"in 2 of 2 tries \(no answer within 0.2 s\)"):
            slow.logprobs(*PAIR, 3)
        assert time.monotonic() - started < 1.0


def broken(server, change):
    def answer(question):
        choice = server.choice(question)
        return 200, json.dumps({"choices": [change(choice) or choice]}).encode()

    return answer


MALFORMED = {
    "no field": (lambda c: {"text": "\x1b[31mhi\n"}, r"without choices\[0\].prompt_logprobs: \{'choices'"),
    "null": (lambda c: {"prompt_logprobs": None}, "about 0 tokens instead of 5"),
    "short": (lambda c: c["prompt_logprobs"].pop() and None, "about 4 tokens instead of 5"),
    "long": (lambda c: c["prompt_logprobs"].append({}), "about 6 tokens instead of 5"),
    "other token": (lambda c: c["prompt_logprobs"][3].pop("8") and None, "without token id 8 at position 3"),
    "nan": (lambda c: c["prompt_logprobs"][4]["9"].update(logprob=float("nan")), "nan instead of .* at position 4"),
    "-inf": (lambda c: c["prompt_logprobs"][4]["9"].update(logprob=-float("inf")), "-inf instead of .* position 4"),
    "a probability": (lambda c: c["prompt_logprobs"][2]["7"].update(logprob=0.9), "0.9 instead of a log-probability"),
    "a word": (lambda c: c["prompt_logprobs"][2]["7"].update(logprob="-1"), "'-1' instead of a log-probability"),
    "an endless number": (lambda c: c["prompt_logprobs"][2]["7"].update(logprob=-(10**400)), "instead of a log-pro"),
    "nothing": (lambda c: c["prompt_logprobs"].__setitem__(2, None), "without token id 7 at position 2"),
    "a number": (lambda c: c["prompt_logprobs"].__setitem__(2, -0.5), "without token id 7 at position 2"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_answer_is_asked_for_again_and_then_named(server, kind):
    change, words = MALFORMED[kind]
    server.answer = broken(server, change)
    with pytest.raises(RewardError, match=f"in 3 of 3 tries \\(.*{words}") as refusal:
        impatient(server).logprobs(*PAIR, 3)
    assert len(server.questions) == 3
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b'{"choices": []}', b"[" * 100_000, b"9" * 9_999]
)
def test_garbage_is_no_crash(server, body):
    server.answer = lambda question: (200, body)
    with pytest.raises(RewardError, match=r"in 2 of 2 tries \((not JSON|an answer without choices\[0\])"):
        impatient(server, retries=1).logprobs(*PAIR, 3)


def test_an_echo_that_is_cut_or_null_is_named(server):
    for numbers, words in (
        ([None, -1.0], "about 2 tokens instead of 5"),
        ([None] * 5, "None instead of .* position 2"),
    ):
        server.answer = broken(server, lambda choice, numbers=numbers: {"logprobs": {"token_logprobs": numbers}})
        with pytest.raises(RewardError, match=words):
            impatient(server, protocol="openai").logprobs(*PAIR, 3)


def test_a_refusal_is_final_and_quoted(server):
    server.answer = lambda question: (404, b'{"error": "The model `teacher`\n does not exist."}')
    with pytest.raises(RewardError, match=r"in 1 of 3 tries \(HTTP 404: .*The model `teacher`  does not exist"):
        impatient(server).logprobs(*PAIR, 3)
    assert len(server.questions) == 1


def test_no_other_address_is_ever_contacted(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    impatient(server).logprobs(*PAIR, 3)
    server.answer = lambda question: (307, b"moved")
    with pytest.raises(RewardError, match=r"in 1 of 3 tries \(HTTP 307: moved\)"):
        impatient(server).logprobs(*PAIR, 3)
    assert len(server.questions) == 2


def test_when_one_completion_is_given_up_so_are_all(server):
    server.answer = lambda question: (500, b"")
    with pytest.raises(RewardError, match="in 2 of 2 tries"):
        impatient(server, retries=1, pause=0.2).logprobs([[5]] * 100, [[6]] * 100, 1)
    assert len(server.questions) <= 3 * PARALLEL


def test_an_address_that_is_none_is_one_sentence():
    for url in ("http://127.0.0.1:99999", "http://ho st", "http://127.0.0.1:http", "http://\N{SNOWMAN}."):
        with pytest.raises(RewardError, match=r"in 1 of 1 tries \(\w+: .+\); see to"):
            ServerTeacher(url, "teacher", retries=0).logprobs(*PAIR, 3)
