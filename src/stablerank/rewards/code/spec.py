"""The recipe's entry for the code reward. It runs what a model writes, so the recipe has to say so."""

from typing import ClassVar, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.code.reward import CodeTestsReward, Score
from stablerank.rewards.code.sandbox import Limits, protections
from stablerank.rewards.deposits import Reward


class CodeTestsSpec(RewardSpecBase):
    """1.0 for a program that passes its unit tests, run in a sandbox on this machine."""

    judges: ClassVar[bool] = True

    kind: Literal["code_tests"] = "code_tests"
    execution: Literal["refused", "allowed"] = Field(
        default="refused", description="set to allowed: the code that the model writes is run on this machine"
    )
    tests_column: str = Field(default="tests", min_length=1, description="dataset column with the unit tests")
    score: Score = Field(default="all", description="1.0 only for all tests, or the share of tests passed")
    cpu_seconds: int = Field(default=5, ge=1, description="CPU time of a program; the wall clock ends it at 3 x + 2")
    memory_mb: int = Field(default=512, ge=64, description="address space of a program")
    workers: int | None = Field(default=None, ge=1, description="programs at once; unset: one a core")
    allow_network: bool = Field(
        default=False, description="run even where the kernel cannot keep programs from the network and from forking"
    )
    allow_files: bool = Field(
        default=False, description="run even where the kernel cannot keep programs from your files and processes"
    )

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward. Tries out what the kernel guards; RewardError where that is less than the recipe accepts."""
        if self.execution != "allowed":
            raise RewardError(
                "the reward code_tests runs the code that the model writes, and reward.execution is 'refused'; set "
                "`reward.execution=allowed` if this machine may run it"
            )
        held = protections()
        if not (self.allow_network or (held.network and held.processes)):
            raise RewardError(_refusal("the network and from starting processes", "seccomp filters", "allow_network"))
        if not (self.allow_files or held.files):
            raise RewardError(_refusal("your files and processes", "Landlock (Linux 5.13)", "allow_files"))
        waived = {"network"} if self.allow_network else set()
        waived |= {"files"} if self.allow_files else set()
        limits = Limits(self.cpu_seconds, self.memory_mb, frozenset({"network", "files"} - waived))
        return CodeTestsReward(self.tests_column, self.score, limits, self.workers)


def _refusal(what: str, how: str, setting: str) -> str:
    return (
        f"this kernel cannot keep code from {what}, which reward code_tests does with {how}; train where it can, or "
        f"set `reward.{setting}=true` inside a container or virtual machine that you can lose"
    )
