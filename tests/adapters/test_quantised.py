"""Which methods work on a quantised base (bitsandbytes, 4-bit NF4 and 8-bit, on the CPU), and what is refused."""

from itertools import product
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, Qwen3Config

from stablerank.adapters.layer import SpectralLinear
from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.specs import AdapterSpec
from stablerank.adapters.variants.base import base_weight, hold_layout
from stablerank.adapters.variants.methods import VARIANTS
from stablerank.errors import ModelError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; it is in the dev extra")

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
CONFIGS = {"llama": LlamaConfig(**SHAPE), "qwen3": Qwen3Config(**SHAPE)}
QUANTISED = {
    "4bit": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "4bit-nested": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    ),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}
SETTINGS = {"sinelora": {"omega": 100.0}}
OURS = sorted(VARIANTS)
FOUR_BIT = [kind for kind in OURS if kind != "corda"]
WRAPPED = [*OURS, "lora", "rslora"]


def spec_of(kind):
    low_rank = {} if kind in ("bitfit", "sparse", "full") else {"r": 4, "alpha": 4}
    return TypeAdapter(AdapterSpec).validate_python({"kind": kind, **low_rank, **SETTINGS.get(kind, {})})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for architecture, config in CONFIGS.items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for value in model.parameters():
            if value.ndim == 2:
                value.data.normal_(std=0.15)
        made[architecture] = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(made[architecture])
    return made


@pytest.fixture
def quantised(folders):
    def load(bits: str, architecture: str = "qwen3"):
        model = AutoModelForCausalLM.from_pretrained(
            folders[architecture], quantization_config=QUANTISED[bits], dtype=torch.float32, device_map="cpu"
        )
        for module in model.modules():
            hold_layout(module)
        return model.eval()

    return load


def prepared(model, kind, ids):
    torch.manual_seed(1)
    return prepare_adapter(model, spec_of(kind), calibration=[{"input_ids": ids}]).eval()


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("bits", QUANTISED)
@pytest.mark.parametrize("kind", [*WRAPPED, "dora"])
def test_start_training_reference_and_reload(quantised, ids, tmp_path, kind, bits):
    if (kind, bits) == ("dora", "8bit"):
        with pytest.raises(ModelError, match="DoRA drops the scales of a Linear8bitLt on a CPU"):
            prepared(quantised(bits), kind, ids)
        return
    if kind == "corda" and bits != "8bit":
        with pytest.raises(ModelError, match="packed 4-bit weights"):
            prepared(quantised(bits), kind, ids)
        return
    untouched = logits(quantised(bits), ids)
    model = prepared(quantised(bits), kind, ids)
    assert torch.equal(logits(model, ids), untouched)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    for _ in range(3):
        optimiser.zero_grad()
        model.train()(ids, labels=ids).loss.backward()
        optimiser.step()
    moved = logits(model.eval(), ids)
    assert (moved - untouched).abs().max() > 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), untouched)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(quantised(bits), tmp_path).eval(), ids), moved)


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_llama_too(quantised, ids, kind):
    untouched = logits(quantised("4bit", "llama"), ids)
    assert torch.equal(logits(prepared(quantised("4bit", "llama"), kind, ids), ids), untouched)


@pytest.mark.parametrize(("kind", "bits"), [*product(FOUR_BIT, ["4bit"]), *product(OURS, ["8bit"])])
def test_merging_into_a_quantised_base_is_refused(quantised, ids, kind, bits):
    with pytest.raises(ModelError, match=r"Linear(4bit|8bitLt) cannot be merged into"):
        prepared(quantised(bits), kind, ids).merge_and_unload()


@pytest.mark.parametrize("bits", QUANTISED)
def test_the_dequantised_weight_is_what_the_layer_multiplies_with(quantised, ids, bits):
    model = prepared(quantised(bits), "pissa", ids)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SpectralLinear)}
    assert len(layers) == 2 * 7
    for layer in layers.values():
        with torch.no_grad():
            expected = layer.train().base_layer(torch.eye(layer.in_features)).T
        error = (base_weight(layer).float() - expected).norm() / expected.norm()
        assert error < (1e-6 if bits == "4bit" else 0.01)  # the nested one computes in bf16, the 8-bit in fp16


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_evaluation_before_training_leaves_the_gradients_alone(quantised, ids, bits):
    gradients = []
    for evaluated in (False, True):
        model = prepared(quantised(bits), "pissa", ids)
        if evaluated:
            logits(model, ids)
        model.train()(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(left, right) and left.any() for left, right in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["pissa", "lora"])
def test_a_weight_repacked_for_inference_is_refused(quantised, ids, kind):
    base = quantised("4bit")
    layer = base.model.layers[0].mlp.up_proj
    # What a Linear4bit does to itself at its first inference on a CPU with AVX512-BF16.
    packed = bitsandbytes.functional._convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    layer.weight.data, layer.weight.quant_state = packed
    with pytest.raises(ModelError, match="has repacked this Linear4bit"):
        prepared(base, kind, ids)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("kind", ["bitfit", "sparse", "full"])
def test_what_trains_in_place_refuses_a_quantised_base_by_name(quantised, kind, bits):
    with pytest.raises(
        ModelError, match=r"(BitFit|SparseFT|Full fine-tuning) trains Qwen3ForCausalLM's own.*quantised"
    ):
        prepare_adapter(quantised(bits), spec_of(kind))
