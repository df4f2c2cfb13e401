"""The recipe's ``reward: {kind: distillation}``, with its teacher here or behind a server."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Reward
from stablerank.rewards.distillation.model_teacher import load_teacher, load_tokenizer
from stablerank.rewards.distillation.reward import DistillationReward, Teacher
from stablerank.rewards.distillation.server_teacher import ProtocolName, ServerTeacher
from stablerank.rewards.distillation.vocabulary import check_vocabulary
from stablerank.zoo.resolve import resolve


class TeacherSpec(BaseModel):
    """A teacher that runs beside the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="`zoo:NAME`, a Hugging Face folder, or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="or `bfloat16`")
    device: str | None = Field(default=None, description="such as `cuda:1`; unset: the GPU if there is one")


class ServerSpec(BaseModel):
    """A teacher behind vLLM, or another server of OpenAI's completions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", description="such as `http://localhost:8000`")
    model: str = Field(min_length=1, description="the name it is served under")
    tokenizer: str = Field(min_length=1, description="the teacher's: `zoo:NAME`, a folder, or a hub id")
    protocol: ProtocolName = Field(default="vllm", description="or `openai`: echoed prompts with `logprobs`")
    timeout: float = Field(default=60.0, gt=0, description="seconds a try")
    retries: int = Field(default=5, ge=0, description="tries after the first, with pauses that double from 1 s")


class DistillationSpec(RewardSpecBase):
    """How much likelier the teacher finds each sampled token than the policy did."""

    default_credit: ClassVar[CreditSpec] = CreditSpec(centre="none", scale="none")

    kind: Literal["distillation"]
    teacher: TeacherSpec | None = Field(default=None, description="a teacher in this process; or `server`")
    server: ServerSpec | None = Field(default=None, description="a teacher behind a server; or `teacher`")
    temperature: float = Field(default=1.0, gt=0, description="of both log-probabilities: that of `trainer`")
    clip: float | None = Field(default=None, gt=0, description="largest reward of a token, either way")

    @model_validator(mode="after")
    def _has_one_teacher(self) -> "DistillationSpec":
        if (self.teacher is None) == (self.server is None):
            have = "neither" if self.teacher is None else "both"
            raise ValueError(f"reward.teacher and reward.server: {have} given; give the one where the teacher runs")
        if self.server is not None and self.temperature != ServerTeacher.temperature:
            raise ValueError(
                f"reward.temperature={self.temperature} does not go with reward.server, whose log-probabilities are at "
                "temperature 1; sample at trainer.temperature=1, or run the teacher here with reward.teacher"
            )
        return self

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; loads the teacher or reaches its server, and compares the vocabularies."""
        return DistillationReward(self._built_teacher(tokenizer), self.clip)

    def _built_teacher(self, tokenizer: PreTrainedTokenizerBase) -> Teacher:
        if self.teacher is not None:
            here = self.teacher
            return load_teacher(here.path, here.dtype, here.device, self.temperature, tokenizer)
        server = self.server
        assert server is not None
        place = server.tokenizer if Path(server.tokenizer).is_dir() else resolve(server.tokenizer)
        check_vocabulary(tokenizer, load_tokenizer(place, server.tokenizer), server.model)
        teacher = ServerTeacher(server.url, server.model, server.protocol, server.timeout, server.retries)
        teacher.check(max(tokenizer.get_vocab().values()))
        return teacher
