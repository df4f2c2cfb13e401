"""`stablerank diagnose` as typed: exit codes, strict JSON, a page, bad input in one sentence."""

import json
import math
import sys

import pytest

from stablerank.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """`stablerank diagnose ARGUMENTS` in this process: exit code, stdout, stderr."""

    def diagnose(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "diagnose", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return diagnose


@pytest.fixture
def state(tmp_path):
    """A ``trainer_state.json`` whose reward rises, with other columns as asked; each a function of the step."""

    def written(**columns):
        log = [
            {
                "step": step,
                "loss": 0.1,
                "reward": 0.3 + 0.05 * step + 0.004 * (-1) ** step,
                **{key: value(step) for key, value in columns.items()},
            }
            for step in range(1, 13)
        ]
        path = tmp_path / "trainer_state.json"
        path.write_text(json.dumps({"log_history": log}))
        return path

    return written


def strict(text):
    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refused)


def test_a_clean_bill_says_what_was_and_what_could_not_be_looked_for(run, state):
    code, out, err = run(state(kl=lambda step: 0.001 * (step - 1)))
    assert (code, err) == (0, "")
    assert "No problem found" in out
    assert "Looked for and not found: wrong reference," in out
    assert "Could not be looked for:" in out and "(needs training completions" in out
    assert max(len(line) for line in out.splitlines() if str(state) not in line and "trainer_state" not in line) <= 100


def test_a_problem_comes_first_and_makes_the_exit_code_1(run, state):
    code, out, err = run(state(kl=lambda step: 0.4))
    assert (code, err) == (1, "")
    assert out.index("! The reference is not the policy that training began from") < out.index("What the run did")
    assert "Change: Call `stablerank.adapters.reference.guard_reference(trainer)`" in out
    assert "\x1b" not in out


def test_a_warning_alone_is_no_problem(run, state):
    code, out, _ = run(state(reward=lambda step: 0.3 + 0.05 * (-1) ** step, kl=lambda step: 0.001 * (step - 1)))
    assert code == 0
    assert "* The reward did not change beyond its noise" in out


def test_json_is_strict_and_whole(run, state):
    code, out, err = run(state(loss=lambda step: math.nan if step > 6 else 0.1), "--json")
    told = strict(out)
    assert (code, err) == (1, "")
    assert (told["problem"], told["writer"], told["logged_steps"]) == (True, "trl", 12)
    assert told["found"][0]["cause"] == "not_finite"
    assert told["found"][0]["first_step"] == 7
    assert told["verdict"] == told["found"][0]["sentence"]
    assert {one["cause"] for one in told["not_checked"]} >= {"wrong_reference", "cap_too_short"}


def test_a_page_is_written_and_named(run, state, tmp_path):
    page = tmp_path / "health.html"
    code, out, _ = run(state(kl=lambda step: 0.4), "--out", page)
    assert code == 1
    assert out.splitlines()[-1] == f"page: {page}"
    assert "Was it healthy?" in page.read_text()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "does not exist; give the folder"),
        (lambda path: path.write_text("{"), "cannot be read"),
        (lambda path: path.write_text('{"log_history": [{"loss": 1}]}'), "cannot be read"),
        (lambda path: path.write_text("[]"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, state, spoil, words):
    path = state()
    spoil(path)
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert words in err and err.startswith("stablerank: ") and len(err.splitlines()) == 1


def test_a_page_that_cannot_be_written_is_one_sentence(run, state, tmp_path):
    code, _, err = run(state(), "--out", state() / "page.html")
    assert code == 2
    assert "--out" in err and "cannot be written" in err and len(err.splitlines()) == 1
