"""From a spec to a model that trains: every family, calibration, progress, and refusals that leave the model alone."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from pydantic import TypeAdapter

import stablerank
from stablerank.adapters.prepare import NEEDS_DATA, prepare_adapter
from stablerank.adapters.specs import AdapterSpec
from stablerank.errors import ModelError

LOW_RANK = ("lora", "rslora", "dora", "eva", "pissa", "milora", "geora", "olora", "corda", "polar", "sinelora")


def spec(kind, **settings):
    extra = {"omega": 50.0} if kind == "sinelora" else {}
    return TypeAdapter(AdapterSpec).validate_python({"kind": kind, **extra, **settings})


def calibration(ids):
    return [{"input_ids": row[None]} for row in ids]


def layers(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LOW_RANK)
def test_a_low_rank_kind_starts_as_the_untouched_model(load, ids, kind, dtype):
    base, untouched = load("qwen3", dtype), load("qwen3", dtype)
    told = []
    model = prepare_adapter(base, spec(kind, r=3), calibration(ids), lambda done, total: told.append((done, total)))
    assert isinstance(model, PeftModel)
    assert told == [(done, 14) for done in range(15)]
    own = dict(untouched.named_parameters())
    for name, layer in layers(model).items():
        assert torch.equal(layer.get_base_layer().weight, own[f"{name.removeprefix('base_model.model.')}.weight"])
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    # PEFT's DoRA divides a magnitude by a norm that it computes again, which bf16 rounds to another number.
    allowed = 0.05 if (kind, dtype) == ("dora", torch.bfloat16) else 0.0
    with torch.no_grad():
        assert (model.eval()(ids).logits - untouched(ids).logits).abs().max() <= allowed


def test_progress_leaves_no_trace_in_the_configuration(load):
    told = []
    model = prepare_adapter(load("qwen3"), spec("pissa", r=2), progress=lambda *where: told.append(where))
    seen = len(told)
    model.add_adapter("ref", model.peft_config["default"])
    assert len(told) == seen == 15


def test_methods_of_the_whole_model(load):
    sparse, full = load("qwen3"), load("qwen3")
    assert prepare_adapter(full, spec("full")) is full
    assert all(parameter.requires_grad for parameter in full.parameters())
    assert prepare_adapter(sparse, spec("sparse", rank=3)) is sparse
    trained = {name for name, parameter in sparse.named_parameters() if parameter.requires_grad}
    assert len(trained) == 14
    biased = prepare_adapter(load("gpt_neox"), spec("bitfit"))
    assert all(name.endswith("bias") == p.requires_grad for name, p in biased.named_parameters())


def test_a_saved_adapter_goes_on(load, ids, tmp_path):
    first = prepare_adapter(load("qwen3"), spec("pissa", r=2))
    next(iter(layers(first).values())).lora_B["default"].weight.data += 0.3
    first.save_pretrained(tmp_path)
    again = prepare_adapter(load("qwen3"), spec("saved", path=str(tmp_path)))
    assert any(parameter.requires_grad for parameter in again.parameters())
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, first.eval()(ids).logits)


def test_eva_finds_the_leading_directions_of_the_inputs(load):
    ids = torch.randint(3, 48, (40, 24), generator=torch.Generator().manual_seed(1))
    model = prepare_adapter(load("qwen3"), spec("eva", r=2, targets=["down_proj"]), [{"input_ids": ids}])
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model.eval()(ids)
    handle.remove()
    centred = (seen[0] - seen[0].mean(0)).double().numpy()
    a = layer.lora_A["default"].weight.detach().double().numpy()
    leading = np.linalg.svd(centred, full_matrices=False)[2][: len(a)]
    assert np.linalg.svd(leading @ a.T, compute_uv=False).min() > 0.99, "the same subspace"
    assert not layer.lora_B["default"].weight.any()


@pytest.mark.parametrize("kind", NEEDS_DATA)
def test_padding_is_no_data(load, ids, kind):
    long, short = ids[0], ids[1, :9]
    padded = torch.stack([long, torch.cat([short, torch.zeros(3, dtype=torch.long)])])
    mask = (padded != 0).long()
    given = ([{"input_ids": padded, "attention_mask": mask}], [{"input_ids": row[None]} for row in (long, short)])
    first, second = (layers(prepare_adapter(load("qwen3"), spec(kind, r=2), batches)) for batches in given)
    for name, layer in first.items():
        torch.testing.assert_close(layer.lora_A["default"].weight, second[name].lora_A["default"].weight)


def test_corda_is_pefts_own_start(load, ids):
    ours = layers(prepare_adapter(load("qwen3"), spec("corda", r=3), calibration(ids)))
    base = load("qwen3")
    targets = [name.removeprefix("base_model.model.") for name in ours]
    config = LoraConfig(
        r=3, lora_alpha=3, target_modules=targets, init_lora_weights="corda", corda_config=CordaConfig()
    )
    preprocess_corda(base, config, lambda: [base(row[None]) for row in ids])
    for name, layer in layers(get_peft_model(base, config)).items():
        for factor in ("lora_A", "lora_B"):
            theirs, mine = (getattr(one, factor)["default"].weight for one in (layer, ours[name]))
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_calibration_leaves_nothing_on_the_model(load, ids):
    base = load("qwen3").train()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = prepare_adapter(base, spec("corda", r=2, targets=["q_proj"]), calibration(ids))
    base_layers = [layer.get_base_layer() for layer in layers(model).values()]
    assert not any(hasattr(layer, "eigens") or layer._forward_hooks for layer in base_layers)
    own = model.unload().state_dict()
    assert all(torch.equal(own[name], value) for name, value in before.items())
    assert model.training


@pytest.mark.parametrize("kind", NEEDS_DATA)
def test_too_little_data_is_refused(load, ids, kind):
    for batches in ((), [{"input_ids": ids[:1, :1]}]):
        with pytest.raises(ModelError, match=rf"{kind} starts from the inputs .* but got [01]; give"):
            prepare_adapter(load("qwen3"), spec(kind, r=3), batches)


def test_a_short_last_batch_is_no_trap(load):
    """PEFT's EVA skips a batch of fewer tokens than directions, and prints that into the user's output."""
    ids = torch.randint(3, 48, (87, 12), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": row[None]} for row in ids]  # 12 tokens are left after a thousand, and 16 are sought
    with redirect_stdout(StringIO()) as printed:
        model = prepare_adapter(load("qwen3"), spec("eva", r=8, targets=["layers.0.self_attn.q_proj"]), batches)
    assert isinstance(model, PeftModel)
    assert printed.getvalue() == ""


@pytest.mark.parametrize("kind", ["pissa", "geora", "milora", "polar", "eva"])
def test_a_rank_above_the_weights_is_refused(load, ids, kind):
    with pytest.raises(ModelError, match=rf"{kind} with r=33 needs .* directions of model\.layers\.0.*lower r"):
        prepare_adapter(load("qwen3"), spec(kind, r=33), calibration(ids))


def test_plain_lora_may_be_wider_than_a_weight(load):
    assert isinstance(prepare_adapter(load("qwen3"), spec("lora", r=33)), PeftModel)


def test_targets_that_are_not_there_are_refused(load):
    with pytest.raises(ModelError, match="wrong_proj"):
        prepare_adapter(load("qwen3"), spec("lora", targets=["wrong_proj"]))


def test_a_wrapped_model_is_refused(load):
    model = prepare_adapter(load("qwen3"), spec("lora"))
    with pytest.raises(ModelError, match="holds an adapter already"):
        prepare_adapter(model, spec("lora"))


def test_it_is_a_name_of_the_package():
    assert stablerank.prepare_adapter is prepare_adapter
