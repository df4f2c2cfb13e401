import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, Qwen3ForCausalLM

from stablerank.errors import ModelError
from stablerank.rewards.distillation import head as head_module
from stablerank.rewards.distillation.head import Head, check_head
from stablerank.rewards.distillation.model_teacher import ModelTeacher

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "capped": Gemma2Config(**SIZES, final_logit_softcapping=2.0),
    "multiplied": CohereConfig(**SIZES, logit_scale=0.0625),
    "divided": GraniteConfig(**SIZES, logits_scaling=8.0),
    "absolute positions": GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}
ROWS = ([[3, 4, 5], [6], [7, 8]], [[9, 10, 11, 12], [13, 14], [15]])


@pytest.mark.parametrize("kind", CONFIGS)
def test_models_that_change_their_logits_are_followed(kind, plain_logprobs):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)  # random models are nearly uniform, and a cap would not show
    found_NT = ModelTeacher(model, kind, temperature=0.7).logprobs(*ROWS, 4)
    for found_T, prompt, completion in zip(found_NT, *ROWS, strict=True):
        expected = plain_logprobs(model, prompt, completion, 0.7)
        torch.testing.assert_close(found_T[: len(completion)].double(), expected, atol=1e-5, rtol=0)


def test_a_model_with_a_way_of_its_own_is_refused(model):
    class Doubled(Qwen3ForCausalLM):
        def forward(self, *arguments, **named):
            found = super().forward(*arguments, **named)
            found.logits = 2 * found.logits
            return found

    check_head(model.eval(), Head.of(model), "plain")
    doubled = Doubled(model.config).eval()
    with pytest.raises(ModelError, match=r"mine \(Doubled\) changes its logits .* limit 0.02\); serve it"):
        check_head(doubled, Head.of(doubled), "mine")


def test_tiles_change_nothing_but_rounding_and_bound_the_memory(monkeypatch):
    torch.manual_seed(0)
    hidden_MD, weight_VD, bias_V = torch.randn(200, 16), torch.randn(5_000, 16), torch.randn(5_000)
    tokens_M = torch.randint(5_000, (200,))
    head = Head(weight_VD, bias_V, lambda logits: logits)
    whole = (hidden_MD.double() @ weight_VD.double().T + bias_V) / 0.7
    expected = whole.log_softmax(1).gather(1, tokens_M[:, None])[:, 0]
    for tile in (2**24, 20_000):
        monkeypatch.setattr(head_module, "TILE", tile)
        with _Largest() as largest:
            found = head.logprobs(hidden_MD, tokens_M, 0.7)
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)
        assert largest.numel <= max(tile, hidden_MD.numel())


class _Largest(TorchDispatchMode):
    """The most numbers in one tensor that an operation gave."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        if isinstance(found, torch.Tensor):
            self.numel = max(self.numel, found.numel())
        return found


def test_logits_are_fp32_where_the_model_is_bf16():
    torch.manual_seed(0)
    hidden_MD, weight_VD = torch.randn(50, 64).bfloat16(), torch.randn(300, 64).bfloat16()
    tokens_M = torch.randint(300, (50,))
    expected = (hidden_MD.double() @ weight_VD.double().T).log_softmax(1).gather(1, tokens_M[:, None])[:, 0]
    found = Head(weight_VD, None, lambda logits: logits).logprobs(hidden_MD, tokens_M, 1.0)
    careless = (hidden_MD @ weight_VD.T).float().log_softmax(1).gather(1, tokens_M[:, None])[:, 0]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4 < 1e-2 < (careless - expected).abs().max()
