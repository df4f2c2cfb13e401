import pytest

from stablerank.rewards.code.reward import CodeTestsReward
from stablerank.rewards.code.sandbox import Limits
from stablerank.rewards.rollout import rollout_from_trl


@pytest.fixture(scope="session")
def fenced():
    return lambda code: f"Here it is:\n```python\n{code}\n```\n"


@pytest.fixture(scope="session")
def deposit(fenced):
    """The deposit for programs and the tests of each."""

    def score(programs, tests, raw=False, **settings):
        reward = CodeTestsReward(**{"limits": Limits(cpu_seconds=1), "workers": 2, **settings})
        completions = programs if raw else [fenced(program) for program in programs]
        ids = [[1]] * len(completions)
        return reward(rollout_from_trl(["?"] * len(completions), completions, ids, tests=tests))

    return score


@pytest.fixture(scope="session")
def rewards(deposit):
    return lambda *arguments, **settings: deposit(*arguments, **settings).trajectory_rewards_N.tolist()
