"""The reference policy in plain TRL trainers: what it is, and what it is after `guard_reference`.

Every log-probability is compared with that of a separately loaded, untouched model: a damaged policy and its copy
agree with each other, and their KL is 0.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import use_adapter

from stablerank.adapters.reference import guard_reference
from stablerank.adapters.residual import unsafe_initialiser
from stablerank.adapters.specs import PissaSpec, PolarSpec, SineSpec
from stablerank.errors import ModelError
from stablerank.peft import SpectralLoraConfig

FP32, BF16 = torch.float32, torch.bfloat16
ROUNDING = 1e-4
"""Of log-probabilities, where a residual was put back in fp32; damage shows from 1e-2 on."""
DIFFERENCE = {"method": "pissa"}

Load = Callable[..., PreTrainedModel]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789+= abcdefgh"]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="module")
def make(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(kind, model, peft_config, **settings)``: a real trainer of TRL, on the CPU, that writes nothing."""
    output = str(tmp_path_factory.mktemp("trainer"))
    common = {
        "output_dir": output,
        "use_cpu": True,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
    }
    sampling = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}
    prompts = Dataset.from_list([{"prompt": "1+2="}] * 2)
    pairs = Dataset.from_list([{"prompt": "1+2=", "chosen": "3", "rejected": "4a"}] * 2)
    labelled = Dataset.from_list([{"prompt": "1+2=", "completion": str(i), "label": i == 3} for i in (3, 4)])

    def made(kind: str, model: Any, peft_config: Any = None, **settings: Any) -> Any:
        shared = {"model": model, "processing_class": tokenizer, "peft_config": peft_config}
        if kind == "dpo":
            return DPOTrainer(args=DPOConfig(**common | settings), train_dataset=pairs, **shared)
        if kind == "kto":
            return KTOTrainer(args=KTOConfig(**common | settings), train_dataset=labelled, **shared)
        trainer, config = (GRPOTrainer, GRPOConfig) if kind == "grpo" else (RLOOTrainer, RLOOConfig)
        arguments = config(**common | sampling | settings)
        return trainer(reward_funcs=[_length], args=arguments, train_dataset=prompts, **shared)

    return made


@pytest.fixture(scope="module")
def quantised(base_folder: Callable[[str], Path]) -> Make:
    config = BitsAndBytesConfig(load_in_4bit=True)

    def loaded() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            base_folder("qwen3"), quantization_config=config, device_map={"": "cpu"}
        )

    return loaded


def _length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def _lora(init: Any = True, **settings: Any) -> LoraConfig:
    shape = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(init_lora_weights=init, **shape | settings)


def _ours(**settings: Any) -> SpectralLoraConfig:
    shape = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return SpectralLoraConfig(**shape | settings)


@torch.no_grad()
def _log_probs(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(ids).logits.float().log_softmax(-1)


def _sides(trainer: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the policy, and of the reference as TRL asks for it (in training mode)."""
    model = trainer.model.train()
    with use_adapter(model, "ref" if "ref" in model.peft_config else None):
        reference = _log_probs(model, ids)
    return _log_probs(model.eval(), ids), reference


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _trained_adapter(folder: Path, load: Load, ids: Tensor, config: LoraConfig, seed: int = 5) -> Tensor:
    """Save an adapter with a non-zero update; return the log-probabilities of base plus adapter."""
    model = get_peft_model(load("qwen3"), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return _log_probs(model.eval(), ids)


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora"])
def test_residual_init_by_peft_config_shifts_trls_reference_until_guarded(
    init: str, load: Load, ids: Tensor, make: Make
) -> None:
    """TRL's "adapter off" is the residual: KL at step 0 is not 0."""
    untouched = _log_probs(load("qwen3"), ids)
    trainer = make("grpo", load("qwen3"), _lora(init), learning_rate=1e-2)
    policy, reference = _sides(trainer, ids)
    assert _distance(policy, untouched) < ROUNDING
    assert _distance(reference, untouched) > 0.1
    report = guard_reference(trainer)
    assert "a missing adapter 'ref'" in report.mended
    assert 0 < report.largest_error < 1e-6
    policy, reference = _sides(trainer, ids)
    assert torch.equal(policy, reference)
    assert _distance(policy, untouched) < ROUNDING
    assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if ".ref." in name)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0.0
    trained, still = _sides(trainer, ids)
    assert torch.equal(still, reference) and not torch.equal(trained, policy)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4"])
def test_residual_init_on_a_wrapped_model_damages_the_base_twice_while_kl_reads_zero(
    init: str, load: Load, ids: Tensor, make: Make
) -> None:
    untouched = _log_probs(load("qwen3"), ids)
    trainer = make("dpo", get_peft_model(load("qwen3"), _lora(init)))
    policy, reference = _sides(trainer, ids)
    assert torch.equal(policy, reference)
    assert _distance(policy, untouched) > 0.1
    assert guard_reference(trainer).mended == ("the residual base",)
    policy, reference = _sides(trainer, ids)
    assert torch.equal(policy, reference)
    assert _distance(policy, untouched) < ROUNDING
    assert guard_reference(trainer).mended == ()


def test_first_dpo_loss_of_a_residual_init_is_ln_2_only_after_the_guard(load: Load, make: Make) -> None:
    losses = []
    for guard in (lambda trainer: None, guard_reference):
        trainer = make("dpo", load("qwen3"), _lora("pissa"))
        guard(trainer)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert abs(losses[0] - math.log(2)) > 1e-3
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(ModelError, match="has trained 1 steps"):
        guard_reference(trainer)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_our_difference_form_needs_no_mending(
    kind: str, is_wrapped: bool, dtype: torch.dtype, load: Load, ids: Tensor, make: Make
) -> None:
    """Policy and reference are the untouched model bit by bit, and so is the first loss of TRL."""
    model, config = load("qwen3", dtype), _ours(spectral=DIFFERENCE)
    trainer = make(kind, get_peft_model(model, config)) if is_wrapped else make(kind, model, config)
    report = guard_reference(trainer)
    assert report.mended == () and report.largest_error == 0.0
    untouched = _log_probs(load("qwen3", dtype), ids)
    assert all(torch.equal(side, untouched) for side in _sides(trainer, ids))
    if dtype == BF16:  # one step each is enough of TRL's own arithmetic
        trainer.train()
        first = trainer.state.log_history[0]
        assert first["kl"] == 0.0 if kind == "grpo" else first["loss"] == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize(
    "config",
    [
        _ours(use_dora=True),
        PissaSpec(kind="pissa", r=4).peft_config(),
        PolarSpec(kind="polar", r=4).peft_config(),
        SineSpec(kind="sinelora", r=4, omega=100.0).peft_config(),
    ],
    ids=["dora", "pissa", "polar", "sinelora"],
)
def test_grpo_after_a_loaded_adapter_has_base_plus_adapter_as_reference(
    config: LoraConfig, load: Load, ids: Tensor, make: Make, tmp_path: Path
) -> None:
    saved = _trained_adapter(tmp_path, load, ids, config)
    assert _distance(saved, _log_probs(load("qwen3"), ids)) > 0.1
    trainer = make("grpo", PeftModel.from_pretrained(load("qwen3"), tmp_path, is_trainable=True))
    assert guard_reference(trainer).mended == ()
    assert all(torch.equal(side, saved) for side in _sides(trainer, ids))


def test_adapter_tensors_that_trl_does_not_copy_are_copied(load: Load, ids: Tensor, make: Make, tmp_path: Path) -> None:
    """Factors of embeddings stand in a ParameterDict: TRL's reference starts them anew."""
    saved = _trained_adapter(tmp_path, load, ids, _lora(target_modules=["embed_tokens", "q_proj"]))
    trainer = make("grpo", PeftModel.from_pretrained(load("qwen3"), tmp_path, is_trainable=True))
    assert _distance(_sides(trainer, ids)[1], saved) > 0.01
    assert guard_reference(trainer).mended == ("tensors not copied to 'ref'",)
    assert all(torch.equal(side, saved) for side in _sides(trainer, ids))


def test_factors_that_trl_rounds_on_a_quantised_base_are_rounded_in_the_reference(quantised: Make, make: Make) -> None:
    trainer = make("dpo", get_peft_model(quantised(), _lora()))
    factors = trainer.model.get_base_model().model.layers[0].mlp.up_proj.lora_A
    assert (factors["default"].weight.dtype, factors["ref"].weight.dtype) == (BF16, FP32)
    assert guard_reference(trainer).mended == ("tensors not copied to 'ref'",)
    assert factors["ref"].weight.dtype == BF16
    assert torch.equal(factors["ref"].weight, factors["default"].weight)


def test_dropout_of_the_reference_is_switched_off(load: Load, ids: Tensor, make: Make, tmp_path: Path) -> None:
    """GRPO asks the reference in training mode, where TRL's copy of the adapter drops out."""
    saved = _trained_adapter(tmp_path, load, ids, _lora(lora_dropout=0.5))
    trainer = make("grpo", PeftModel.from_pretrained(load("qwen3"), tmp_path, is_trainable=True))
    assert _distance(_sides(trainer, ids)[1], saved) > 0.01
    assert guard_reference(trainer).mended == ("dropout in 'ref'",)
    assert torch.equal(_sides(trainer, ids)[1], saved)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_dora_on_a_bf16_base_starts_from_the_base_after_the_guard(
    is_wrapped: bool, load: Load, ids: Tensor, make: Make
) -> None:
    """PEFT rounds the first magnitudes to bf16, so that the policy itself is off."""
    untouched, config = _log_probs(load("qwen3", BF16), ids), _lora(use_dora=True)
    model = load("qwen3", BF16)
    trainer = make("dpo", get_peft_model(model, config)) if is_wrapped else make("dpo", model, config)
    assert _distance(_sides(trainer, ids)[0], untouched) > 0.01
    assert guard_reference(trainer).mended == ("DoRA's rounded magnitudes",)
    assert all(torch.equal(side, untouched) for side in _sides(trainer, ids))


@pytest.mark.parametrize("kind", ["kto", "rloo"])
def test_kto_and_rloo_are_guarded_by_the_same_code(kind: str, load: Load, ids: Tensor, make: Make) -> None:
    untouched = _log_probs(load("qwen3"), ids)
    trainer = make(kind, load("qwen3"), _lora("pissa"))
    assert _distance(_sides(trainer, ids)[1], untouched) > 0.1
    guard_reference(trainer)
    assert all(_distance(side, untouched) < ROUNDING for side in _sides(trainer, ids))


def test_full_fine_tuning_compares_the_two_models(load: Load, make: Make) -> None:
    with_bias = load("qwen3")
    with_bias.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(56))
    for policy in (load("qwen3"), with_bias):
        assert guard_reference(make("grpo", policy)).reference == "a model of its own"
    changed = load("qwen3")
    changed.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(ModelError, match=r"reference model's model\.layers\.0\.mlp\.up_proj\.weight differs"):
        guard_reference(make("grpo", changed))


def test_without_a_reference_the_policy_is_still_checked(load: Load, make: Make) -> None:
    assert guard_reference(make("grpo", load("qwen3"), beta=0.0)).reference == "none (beta is 0)"
    assert guard_reference(make("grpo", load("qwen3"), _lora("pissa"), beta=0.0)).reference == "none (beta is 0)"
    with pytest.raises(ModelError, match=r"rounded to bfloat16.*PissaSpec"):
        guard_reference(make("grpo", load("qwen3", BF16), _lora("pissa"), beta=0.0))


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_residual_base_in_bf16_is_refused_and_left_alone(
    is_wrapped: bool, load: Load, ids: Tensor, make: Make
) -> None:
    model, config = load("qwen3", BF16), _lora("olora")
    trainer = make("dpo", get_peft_model(model, config)) if is_wrapped else make("dpo", model, config)
    before = _sides(trainer, ids)
    with pytest.raises(ModelError, match=r"misses model\.layers\.\d.*e-03 \(relative, limit 1e-05\).*PissaSpec"):
        guard_reference(trainer)
    assert all(torch.equal(*pair) for pair in zip(before, _sides(trainer, ids), strict=True))


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_trained_residual_adapter_is_not_taken_for_a_fresh_one(
    kind: str, load: Load, ids: Tensor, make: Make, tmp_path: Path
) -> None:
    """Putting W - s B A back would silently undo its training."""
    _trained_adapter(tmp_path, load, ids, _lora("pissa"))
    policy = PeftModel.from_pretrained(load("qwen3"), tmp_path, is_trainable=True)
    with pytest.raises(ModelError, match=r"are not those that 'pissa' drew.*path_initial_model_for_weight_conversion"):
        guard_reference(make(kind, policy, beta=0.1 if kind == "dpo" else 0.0))


def test_a_residual_init_on_a_quantised_base_is_refused(quantised: Make, make: Make) -> None:
    with pytest.raises(ModelError, match=r"is quantised.*PissaSpec"):
        guard_reference(make("dpo", quantised(), _lora("olora")))


def test_a_base_other_than_the_stored_one_is_refused(load: Load, make: Make) -> None:
    changed = load("qwen3")
    changed.model.embed_tokens.weight.data[3, 0] += 1e-3
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight differs from the one stored in"):
        guard_reference(make("grpo", changed, _lora()))
    nowhere = load("qwen3")
    nowhere.config._name_or_path = ""
    with pytest.raises(ModelError, match="names no folder"):
        guard_reference(make("grpo", nowhere, _lora()))


def test_a_first_update_that_is_not_zero_is_refused(load: Load, make: Make) -> None:
    with pytest.raises(ModelError, match=r"changes model\.layers\.0\.self_attn\.q_proj by"):
        guard_reference(make("grpo", load("qwen3"), _lora(False)))


def test_log_probabilities_computed_ahead_with_a_wrong_reference_are_refused(load: Load, make: Make) -> None:
    assert guard_reference(make("dpo", load("qwen3"), _lora(), precompute_ref_log_probs=True)).mended == ()
    with pytest.raises(ModelError, match="computed ahead"):
        guard_reference(make("dpo", load("qwen3"), _lora("pissa"), precompute_ref_log_probs=True))


def test_a_base_that_trains_along_is_refused(load: Load, make: Make) -> None:
    with pytest.raises(ModelError, match=r'trains inside the base.*`bias="none"`'):
        guard_reference(make("grpo", load("gpt_neox"), _lora(bias="all")))


def test_adapters_of_other_names_are_refused(load: Load, make: Make) -> None:
    several = get_peft_model(load("qwen3"), _lora())
    several.add_adapter("style", _lora())
    with pytest.raises(ModelError, match=r"adapters \['default', 'style'\]"):
        guard_reference(make("grpo", several, beta=0.0))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (_lora("pissa_niter_4"), "pissa_niter_4"),
        (_lora("OLoRA"), "olora"),
        (_lora("loftq", loftq_config={"loftq_bits": 4}), "loftq"),
        (_lora(), None),
        (_lora("orthogonal"), None),
        (_ours(spectral=DIFFERENCE), None),
    ],
)
def test_unsafe_initialisers_are_known_before_anything_is_wrapped(config: LoraConfig, name: str | None) -> None:
    assert unsafe_initialiser(config) == name
