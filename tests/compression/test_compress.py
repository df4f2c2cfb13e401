"""An adapter to a file and back on a model: every family, against PEFT's own loading of the same tensors."""

import json

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import CLIPConfig, CLIPModel, Qwen3ForCausalLM

import stablerank
from stablerank.adapters.export import base_fingerprint
from stablerank.compression.base_print import folder_print, model_print
from stablerank.compression.compress import compress, encode_adapter, expand, load_compressed, read_adapter
from stablerank.compression.container import read_container
from stablerank.compression.factors import modules
from stablerank.compression.losses import summary
from stablerank.compression.spec import CompressionSpec
from stablerank.errors import ModelError, RecipeError, RunFolderError

FAMILIES = ("lora", "rslora", "dora", "patterns", "sinelora")


def answered(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", [CompressionSpec(bits=4), CompressionSpec("affine", 6, "row")], ids=str)
def test_a_file_loads_as_its_quantised_tensors_do(family, spec, adapters, load, ids, tmp_path):
    model, folder = adapters(family)
    done = compress(folder, tmp_path / "small", spec)
    loaded = load_compressed(tmp_path / "small", load())
    # PEFT's own way in: its folder with the tensors replaced by their quantised values.
    quantised = read_container(tmp_path / "small").tensors
    safetensors.torch.save_file(quantised, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    wanted = PeftModel.from_pretrained(load(), str(tmp_path))
    assert torch.equal(answered(loaded, ids), answered(wanted, ids))
    assert not torch.equal(answered(loaded, ids), answered(model, ids))
    assert 0 < summary(done.losses).median_error < 0.3
    assert len(done.losses) == len(quantised) // (3 if family == "dora" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_answer_nearly_as_the_adapter_does(family, adapters, load, ids, tmp_path):
    model, folder = adapters(family)
    full, coarse = (answered(load_compressed(file, load()), ids) for file in _two(folder, tmp_path))
    right = answered(model, ids)
    assert (full - right).abs().max() < 0.1 * (coarse - right).abs().max()


def _two(folder, place):
    for bits in (8, 2):
        yield compress(folder, place / str(bits), CompressionSpec(bits=bits)).file


def test_the_facade_loads_the_base_by_its_name(adapters, ids, tmp_path):
    _, folder = adapters("lora")
    file = stablerank.compress(folder, tmp_path / "small").file
    assert isinstance(stablerank.load_compressed(file), PeftModel)


def test_the_account_is_the_file_and_is_small(adapters, tmp_path):
    done = compress(adapters("lora")[1], tmp_path / "small")
    assert done.account.file == done.file.stat().st_size
    assert done.account.values == sum(t.numel() for t in read_adapter(adapters("lora")[1])[1].values())
    half = {name: tensor.half() for name, tensor in read_adapter(adapters("lora")[1])[1].items()}
    safetensors.torch.save_file(half, tmp_path / "half", metadata={"format": "pt"})
    assert done.account.fp16 == (tmp_path / "half").stat().st_size


def test_five_bits_of_rank_eight_take_what_was_published(tmp_path):
    """The shapes of a model of eight billion parameters, two layers of it; published: 33.5 % of fp16."""
    widths = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "up_proj": (4096, 14336)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(2):
        for name, (inputs, outputs) in widths.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(8, inputs, generator=generator)
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 8, generator=generator)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    for entropy in (False, True):
        done = compress(tmp_path, tmp_path / f"{entropy}", CompressionSpec(entropy=entropy), measure=False)
        assert done.file.stat().st_size <= 0.34 * done.account.fp16


def test_the_base_is_known_by_its_weights(adapters, load, tmp_path):
    model, folder = adapters("lora")
    done = compress(folder, tmp_path / "small")
    assert done.fingerprint == base_fingerprint(model)
    other = load()
    other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(ModelError, match="weights of this model differ"):
        load_compressed(tmp_path / "small", other)


def test_a_quantised_base_is_taken_on_trust(base_folder, adapters):
    _, tensors = read_adapter(adapters("lora")[1])
    names = modules(tensors)
    quantised = Qwen3ForCausalLM.from_pretrained(base_folder)
    assert model_print(quantised, names) == folder_print(str(base_folder), names) != ""
    layer = quantised.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.uint8), requires_grad=False)
    assert model_print(quantised, names) == ""


def test_a_base_that_cannot_be_looked_at_is_no_error(adapters, load, tmp_path):
    done = compress(adapters("lora")[1], tmp_path / "small", base="someone/elsewhere")
    assert done.fingerprint == ""
    assert isinstance(load_compressed(tmp_path / "small", load()), PeftModel)


def test_a_loaded_adapter_trains_on(adapters, load, ids, tmp_path):
    compress(adapters("lora")[1], tmp_path / "small")
    model = load_compressed(tmp_path / "small", load(), is_trainable=True)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert any(parameter.requires_grad for parameter in model.parameters())


class Block(nn.Module):
    """A convolution and a cross-attention, as in a diffusion model's U-Net."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.to_q, self.to_k, self.to_v = nn.Linear(16, 16), nn.Linear(24, 16), nn.Linear(24, 16)
        self.names = nn.Embedding(10, 24)
        self.conv_out = nn.Conv2d(16, 4, 1)

    def forward(self, image, words):
        hidden = self.down(self.conv_in(image).relu()).flatten(2).mT
        context = self.names(words)
        mixed = nn.functional.scaled_dot_product_attention(self.to_q(hidden), self.to_k(context), self.to_v(context))
        return self.conv_out((hidden + mixed).mT.unflatten(2, (4, 4)))


TARGETS = ["conv_in", "down", "to_q", "to_k", "to_v", "names", "conv_out"]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["conv_out"]}], ids=str)
@pytest.mark.parametrize("spec", [CompressionSpec(bits=8), CompressionSpec(bits=8, rank=3)], ids=str)
def test_convolutions_cross_attention_and_embeddings_return(settings, spec, tmp_path):
    targets = [name for name in TARGETS if name not in settings.get("modules_to_save", [])]
    torch.manual_seed(0)
    base = Block()
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path / "adapter")
    done = compress(tmp_path / "adapter", tmp_path / "small", spec)
    assert {loss.module.rpartition(".")[2] for loss in done.losses} == set(targets)
    fresh = Block()
    fresh.load_state_dict(state)
    loaded = load_compressed(done.file, fresh).eval()
    image, words = torch.randn(2, 4, 8, 8), torch.randint(0, 10, (2, 5))
    right = model(image, words)
    with model.disable_adapter():
        effect = (right - model(image, words)).norm()
    assert (loaded(image, words) - right).norm() < (0.03 if spec.rank is None else 0.8) * effect


def test_clip_adapters_return(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(1)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    targets = ["q_proj", "v_proj", "fc1", "patch_embedding", "visual_projection"]
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "adapter")
    done = compress(tmp_path / "adapter", tmp_path / "small", CompressionSpec(bits=8), base=str(tmp_path / "clip"))
    assert done.fingerprint == base_fingerprint(tuned)
    loaded = load_compressed(done.file, CLIPModel.from_pretrained(tmp_path / "clip"))
    inputs = {"input_ids": torch.tensor([[1, 5, 9, 2]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    right, found = tuned.eval()(**inputs), loaded.eval()(**inputs)
    torch.testing.assert_close(found.text_embeds, right.text_embeds, rtol=0, atol=0.02)
    torch.testing.assert_close(found.image_embeds, right.image_embeds, rtol=0, atol=0.02)


def test_expanded_it_is_for_stock_peft(adapters, load, ids, tmp_path):
    done = compress(adapters("dora")[1], tmp_path / "small")
    expand(done.file, tmp_path / "plain")
    stock = PeftModel.from_pretrained(load(), str(tmp_path / "plain"))
    assert torch.equal(answered(stock, ids), answered(load_compressed(done.file, load()), ids))
    with pytest.raises(RunFolderError, match="not empty"):
        expand(done.file, tmp_path / "plain")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "gzip"}, "none of kmeans, affine"),
        ({"method": "nf4", "bits": 3}, "nf4 has 4 bits, not 3"),
        ({"bits": 9}, "1 to 8 bits, not 9"),
        ({"group": "column"}, "neither `tensor`, `row`"),
        ({"group": 0}, "A group of 0 values"),
        ({"rank": 0}, "keeps nothing"),
        ({"energy": 1.5}, "is no share"),
        ({"rank": 2, "energy": 0.9}, "two rules for one cut"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        CompressionSpec(**settings)


def test_what_cannot_be_compressed_is_refused(adapters, tmp_path):
    tensors = read_adapter(adapters("lora")[1])[1]
    for config, words in (
        ({"peft_type": "LOHA"}, "of type LOHA"),
        ({"peft_type": "LORA", "spectral": {"method": "geora"}}, "geora adapter has frozen"),
    ):
        with pytest.raises(ModelError, match=words):
            encode_adapter(config, tensors, CompressionSpec())
    with pytest.raises(ModelError, match="no pair of LoRA factors"):
        encode_adapter({"peft_type": "LORA"}, {"x.bias": torch.ones(3)}, CompressionSpec())
    with pytest.raises(ModelError, match="has no adapter_config"):
        compress(tmp_path, tmp_path / "small")
    (tmp_path / "taken").touch()
    with pytest.raises(RunFolderError, match="exists"):
        compress(adapters("lora")[1], tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b""
