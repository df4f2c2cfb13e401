"""Our own adapters from their folders: the oracle is what the loaded layers compute, read from their forward pass."""

import json
import math

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from stablerank.errors import ModelError
from stablerank.peft import SpectralLoraConfig
from stablerank.probes.adapters.folder import open_adapter
from stablerank.spectral.operators import Dense, Factored

OUT, IN, RANK = 20, 12, 3
METHODS = {
    "pissa": {"method": "pissa", "svd": "exact"},
    "polar free": {"method": "polar", "theta": "free"},
    "polar diagonal": {"method": "polar", "theta": "diagonal"},
    "polar identity": {"method": "polar", "theta": "identity"},
    "sinelora": {"method": "sinelora", "omega": 30.0},
    "sinelora gain": {"method": "sinelora", "omega": 3.0, "gain": 2.5},
}
INNER = {"pissa": 2 * RANK, "polar free": RANK, "polar diagonal": RANK, "polar identity": 2 * RANK}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(IN, OUT), nn.Linear(OUT, IN)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def trained(tmp_path):
    """A saved adapter whose every trained factor moved, and its model."""

    def build(method, **settings):
        torch.manual_seed(0)
        config = {"r": RANK, "lora_alpha": 5, "target_modules": ["first", "second"]} | settings
        model = get_peft_model(Model(), SpectralLoraConfig(spectral=METHODS[method], **config)).double()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn_like(weight))
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return build


@torch.no_grad()
def computed(layer):
    """What the adapter adds to the weight, from the layer's own forward on the unit vectors."""
    units = torch.eye(layer.in_features, dtype=torch.float64)
    return (layer(units) - layer.base_layer(units)).T


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[1], dtype=torch.float64))


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"second": 40}}], ids=str)
def test_the_update_is_what_the_layer_computes(trained, method, settings):
    model, folder = trained(method, **settings)
    found = open_adapter(folder)
    assert found.problems == ()
    assert [update.name for update in found.updates] == ["first", "second"]
    for update in found.updates:
        operator, expected = update.build(), computed(model.get_submodule(f"base_model.model.{update.name}"))
        assert update.shape == operator.shape == tuple(expected.shape)
        torch.testing.assert_close(matrix(operator), expected, rtol=1e-10, atol=1e-12)
        if method in INNER:
            assert isinstance(operator, Factored)
            assert operator.b_OR.shape[1] == INNER[method]
        else:
            assert isinstance(operator, Dense)


def test_a_rank_by_pattern_is_found(trained):
    model, folder = trained("pissa", rank_pattern={"second": 5})
    first, second = (update.build() for update in open_adapter(folder).updates)
    assert (first.b_OR.shape[1], second.b_OR.shape[1]) == (2 * RANK, 10)
    torch.testing.assert_close(matrix(second), computed(model.base_model.model.second))


def test_an_untrained_adapter_makes_no_update(tmp_path):
    get_peft_model(
        Model(), SpectralLoraConfig(r=2, target_modules=["first"], spectral=METHODS["pissa"])
    ).save_pretrained(tmp_path)
    (update,) = open_adapter(tmp_path).updates
    assert matrix(update.build()).abs().max() < 1e-14


def test_an_initial_adapter_is_refused(trained):
    _, folder = trained("pissa")
    found = open_adapter(folder, initial=folder)
    assert found.updates == ()
    assert {problem.tensor for problem in found.problems} == {"first", "second"}
    assert "leave the initial adapter" in found.problems[0].reason


def test_a_method_of_another_version_is_refused_by_name(trained):
    _, folder = trained("pissa")
    edit(folder, spectral={"method": "tomorrow"})
    assert (
        "'tomorrow', a method of stablerank that this version does not know" in open_adapter(folder).problems[0].reason
    )


def test_settings_that_are_no_mapping_are_refused(trained):
    _, folder = trained("pissa")
    edit(folder, spectral="pissa")
    with pytest.raises(ModelError, match="a spectral that is not a mapping"):
        open_adapter(folder)


@pytest.mark.parametrize("omega", [None, 0, -1.0, math.nan, "fast", True])
def test_a_sine_without_a_frequency_is_refused(trained, omega):
    _, folder = trained("sinelora")
    edit(folder, spectral={"method": "sinelora", "omega": omega})
    assert "a sine needs a positive number" in open_adapter(folder).problems[0].reason


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("lora_B0", None, "without lora_B0"),
        ("lora_A", None, "without lora_A"),
        ("lora_A0", torch.zeros(RANK, IN + 1), "but first ones"),
        ("lora_A", torch.zeros(RANK + 1, IN), "do not chain"),
    ],
)
def test_a_damaged_module_is_named_and_spares_the_other(trained, part, value, words):
    _, folder = trained("pissa")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = f"base_model.model.first.{part}.weight"
    del tensors[key]
    save_file(tensors if value is None else {**tensors, key: value}, file)
    found = open_adapter(folder)
    assert [update.name for update in found.updates] == ["second"]
    assert words in found.problems[0].reason


def test_a_theta_of_another_rank_is_refused(trained):
    _, folder = trained("polar free")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.first.lora_S.weight": torch.zeros(2, RANK)}, file)
    assert "a Theta of shape (2, 3)" in open_adapter(folder).problems[0].reason
