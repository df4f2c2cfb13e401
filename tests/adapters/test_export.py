"""Exports are the same function in stock PEFT, in a process that never imports us; what is not exact is refused."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import TypeAdapter
from safetensors.torch import load_file

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.export import base_fingerprint, export_lora, plain_lora
from stablerank.adapters.export_residual import export_residual, residual_weight
from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.specs import AdapterSpec
from stablerank.errors import ModelError, RunFolderError

PISSA = {"method": "pissa", "svd": "exact"}
PATTERNS = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 9}}
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 6, **PATTERNS},
    "rslora": {"lora_alpha": 6, "use_rslora": True},
    "dora": {"lora_alpha": 6, "use_dora": True},
    "difference": {"lora_alpha": 6, "lora_dropout": 0.3, "spectral": PISSA},
    "difference with patterns": {"lora_alpha": 6, "spectral": PISSA, **PATTERNS},
    "difference with rslora": {"lora_alpha": 6, "use_rslora": True, "spectral": PISSA, **PATTERNS},
    "polar": {"lora_alpha": 6, "spectral": {"method": "polar", "theta": "free"}},
    "polar diagonal": {"lora_alpha": 6, "spectral": {"method": "polar", "theta": "diagonal"}, **PATTERNS},
    "polar identity": {"lora_alpha": 6, "spectral": {"method": "polar", "theta": "identity"}, **PATTERNS},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-5, "bf16": 0.05}


@dataclass
class Export:
    """A model that was moved off its start, what it answers, and where it went."""

    model: PeftModel
    logits: torch.Tensor
    folder: Path
    elsewhere: torch.Tensor | None = None
    """The answer of the fresh process."""


def moved(model: PeftModel) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def wrapped(load, settings, dtype=torch.float32) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        config = SpectralLoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
        return moved(get_peft_model(load("qwen3", dtype), config))


def answered(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits.float()


@pytest.fixture(scope="module")
def everything(load, base_folder, ids, tmp_path_factory):
    """Every configuration and dtype as LoRA, and one in residual form, read back by one process without us."""
    work = tmp_path_factory.mktemp("exports")
    made, residuals, cases = {}, {}, {}
    for name, settings in CONFIGS.items():
        for dtype in DTYPES:
            model = wrapped(load, settings, DTYPES[dtype])
            folder = export_lora(model, work / f"{name} {dtype}").folder
            made[name, dtype] = Export(model, answered(model, ids), folder)
            cases[f"{name}|{dtype}"] = case(base_folder("qwen3"), folder, DTYPES[dtype], ids)
    for dtype in DTYPES:
        out = work / f"residual {dtype}"
        residuals[dtype] = export_residual(made["difference with rslora", "fp32"].model, out, dtype=DTYPES[dtype])
        cases[f"residual|{dtype}"] = case(out / "base", out / "adapter", torch.float32, ids)
    elsewhere = read_elsewhere(cases, work)
    for (name, dtype), export in made.items():
        export.elsewhere = elsewhere[f"{name}|{dtype}"]
    return made, residuals, {dtype: elsewhere[f"residual|{dtype}"] for dtype in DTYPES}


def case(base: Path, adapter: Path, dtype: torch.dtype, ids: torch.Tensor) -> dict[str, Any]:
    dtype_name = str(dtype).removeprefix("torch.")
    return {"base": str(base), "adapter": str(adapter), "dtype": dtype_name, "ids": ids.tolist(), "autocast": False}


@pytest.fixture(scope="module")
def exports(everything) -> dict[tuple[str, str], Export]:
    return everything[0]


def read_elsewhere(cases: dict[str, Any], work: Path) -> dict[str, torch.Tensor]:
    """Logits of the cases in a process that asserts that it never imported stablerank."""
    (work / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("reload.py")
    subprocess.run([sys.executable, script, work / "cases.json", work / "out"], check=True, capture_output=True)
    assert json.loads((work / "out.json").read_text()) == {}
    return load_file(work / "out")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_stock_peft_gives_the_same_logits(exports, load, ids, name, dtype):
    export = exports[name, dtype]
    assert (export.logits - answered(load("qwen3", DTYPES[dtype]), ids)).abs().max() > 0.1, "it was moved"
    assert (export.elsewhere - export.logits).abs().max() <= TOLERANCE[dtype] * export.logits.abs().max()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dora"])
def test_each_product_is_the_update_of_its_layer(exports, name):
    export = exports[name, "fp32"]
    tensors = load_file(export.folder / "adapter_model.safetensors")
    stock = LoraConfig.from_pretrained(export.folder)
    layers = {n: m for n, m in export.model.named_modules() if hasattr(m, "lora_A")}
    assert len(tensors) == 2 * len(layers) == 28
    for place, layer in layers.items():
        b, a = (tensors[f"{place}.lora_{letter}.weight"].double().numpy() for letter in "BA")
        update = layer.get_delta_weight("default").detach().double().numpy()
        np.testing.assert_allclose(scale_of(stock, place, len(a)) * b @ a, update, atol=2e-6 * np.abs(update).max())


def scale_of(config: LoraConfig, place: str, rank: int) -> float:
    """The scale that PEFT will use: its own pattern matching, asked through a layer's own update."""
    from peft.utils.other import get_pattern_key

    name = place.removeprefix("base_model.model.")
    key = get_pattern_key(config.rank_pattern, name)
    assert config.rank_pattern.get(key, config.r) == rank
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
    return alpha / rank**0.5 if config.use_rslora else alpha / rank


@pytest.mark.parametrize("name", [name for name in CONFIGS if "rslora" not in name])
def test_the_scale_is_kept_to_the_last_bit(exports, name):
    export = exports[name, "fp32"]
    config = LoraConfig.from_pretrained(export.folder)
    tensors = load_file(export.folder / "adapter_model.safetensors")
    for place, layer in export.model.named_modules():
        if hasattr(layer, "lora_A"):
            rank = len(tensors[f"{place}.lora_A.weight"])
            assert scale_of(config, place, rank) == layer.scaling["default"]


def test_ranks_double_only_where_a_product_is_subtracted(exports):
    for name, export in exports.items():
        model_ranks = {p: m.r["default"] for p, m in export.model.named_modules() if hasattr(m, "lora_A")}
        tensors = load_file(export.folder / "adapter_model.safetensors")
        factor = 2 if name[0].startswith("difference") or name[0] == "polar identity" else 1
        assert {p: len(tensors[f"{p}.lora_A.weight"]) for p in model_ranks} == {
            p: factor * rank for p, rank in model_ranks.items()
        }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_folder_is_plain(exports, base_folder, name, dtype):
    folder = exports[name, dtype].folder
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert "spectral" not in settings
    assert settings["init_lora_weights"] is True
    assert settings["base_model_name_or_path"] == str(base_folder("qwen3"))
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_the_card_says_what_it_is_valid_on(exports, base_folder):
    export = exports["difference", "fp32"]
    card = (export.folder / "README.md").read_text()
    assert f"Valid on `{base_folder('qwen3')}`" in card
    assert base_fingerprint(export.model) in card
    assert "both halves move" in " ".join(card.split())
    assert "both halves" not in (exports["polar", "fp32"].folder / "README.md").read_text()


def test_a_fingerprint_is_of_the_base_alone(load, exports):
    prints = {base_fingerprint(export.model) for export in exports.values()}
    assert len(prints) == 1, "dtype, method and training change nothing of the base"
    other = load("qwen3")
    other.model.layers[1].mlp.down_proj.weight.data[0, 0] += 0.01
    assert base_fingerprint(get_peft_model(other, LoraConfig(r=3, target_modules="all-linear"))) not in prints


def test_an_export_leaves_the_model_as_it_is(exports, ids):
    for name in ("lora", "difference with rslora", "polar identity"):  # the second also went out as a residual
        assert torch.equal(answered(exports[name, "fp32"].model, ids), exports[name, "fp32"].logits)
    tensors, config = plain_lora(exports["lora", "fp32"].model)
    for tensor in tensors.values():
        tensor.zero_()
    config.target_modules.clear()
    assert torch.equal(answered(exports["lora", "fp32"].model, ids), exports["lora", "fp32"].logits)


def test_one_adapter_of_several(load, ids, tmp_path):
    model = wrapped(load, CONFIGS["difference"])
    model.add_adapter("other", SpectralLoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], spectral=PISSA))
    model.set_adapter("other")
    moved(model)
    tensors, config = plain_lora(model, "other")
    assert (len(tensors), config.r, config.lora_alpha) == (4, 4, 4)
    export_lora(model, tmp_path / "other", "other")
    again = PeftModel.from_pretrained(load("qwen3"), tmp_path / "other")
    torch.testing.assert_close(answered(again, ids), answered(model, ids), rtol=0, atol=2e-5)


def test_a_sine_is_refused_with_the_reason_and_the_remedy(load, tmp_path):
    model = wrapped(load, {"lora_alpha": 6, "spectral": {"method": "sinelora", "omega": 50.0, "gain": None}})
    with pytest.raises(ModelError, match=r"sine of a product.*no product of two thin factors; merge"):
        export_lora(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_nameable_base_is_refused(load, tmp_path):
    model = get_peft_model(load("qwen3"), LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="'pissa', which changed its base"):
        export_lora(model, tmp_path / "out")


def test_a_merged_adapter_is_refused(load, tmp_path):
    model = wrapped(load, CONFIGS["lora"])
    model.merge_adapter()
    with pytest.raises(ModelError, match="merged into the base"):
        export_lora(model, tmp_path / "out")


def test_an_unknown_adapter_is_refused(load, tmp_path):
    with pytest.raises(ModelError, match=r"no LoRA adapter 'ref'; its adapters are default\."):
        export_lora(wrapped(load, CONFIGS["lora"]), tmp_path / "out", "ref")


def test_an_occupied_folder_stays_as_it_is(load, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    for write in (export_lora, export_residual):
        with pytest.raises(RunFolderError, match="is not empty"):
            write(wrapped(load, CONFIGS["difference"]), tmp_path / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_failure_half_way_leaves_nothing(load, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on the device")

    monkeypatch.setattr("stablerank.adapters.export.write_text", full)
    with pytest.raises(OSError, match="no space"):
        export_lora(wrapped(load, CONFIGS["difference"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["difference", "difference with patterns", "difference with rslora"])
def test_a_residual_keeps_the_function_in_fp32(load, name):
    model = wrapped(load, CONFIGS[name])
    for layer in (module for module in model.modules() if hasattr(module, "lora_A0")):
        weight = layer.get_base_layer().weight.detach().double().numpy()
        b, a = (getattr(layer, f"lora_{k}0")["default"].weight.detach().double().numpy() for k in "BA")
        residual, error = residual_weight(layer, "default", torch.float32)
        off = np.abs(residual.double().numpy() + layer.scaling["default"] * b @ a - weight).max()
        assert off < 1e-6
        assert error == pytest.approx(off / np.abs(weight).max(), rel=1e-6)


def test_a_residual_in_stock_peft(everything, base_folder):
    exports, residuals, elsewhere = everything
    wanted = exports["difference with rslora", "fp32"].logits
    assert (elsewhere["fp32"] - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert 1e-4 < (elsewhere["bf16"] - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert residuals["fp32"].error < 1e-6 < residuals["bf16"].error < 1e-2
    for dtype, export in residuals.items():
        assert {t.dtype for t in load_file(export.base / "model.safetensors").values()} == {DTYPES[dtype]}
        assert json.loads((export.base / "config.json").read_text())["dtype"] == str(DTYPES[dtype])[6:]
        settings = json.loads((export.adapter.folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(export.base)
        card = (export.adapter.folder / "README.md").read_text()
        assert all(text in card for text in (f"{export.error:.1e}", str(base_folder("qwen3")), str(export.base)))


def test_a_measured_error_is_that_of_the_files(everything):
    exports, residuals, _ = everything
    model, residual = exports["difference with rslora", "fp32"].model, residuals["bf16"]
    written = load_file(residual.base / "model.safetensors")[f"{residual.worst}.weight"].double().numpy()
    layer = model.get_submodule(f"base_model.model.{residual.worst}")
    weight = layer.get_base_layer().weight.detach().double().numpy()
    b, a = (getattr(layer, f"lora_{k}0")["default"].weight.detach().double().numpy() for k in "BA")
    off = np.abs(written + layer.scaling["default"] * b @ a - weight).max()
    assert residual.error == pytest.approx(off / np.abs(weight).max(), rel=1e-6)


def test_a_residual_base_keeps_tied_embeddings_tied(load, tmp_path):
    model = load("qwen3")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    tied = get_peft_model(model, SpectralLoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], spectral=PISSA))
    base = export_residual(tied, tmp_path / "out").base
    names = load_file(base / "model.safetensors")
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert not any("base_layer" in name or "lora" in name for name in names)


def test_a_residual_of_a_tied_weight_is_refused(load, tmp_path):
    model = load("qwen3")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    tied = get_peft_model(model, SpectralLoraConfig(r=2, lora_alpha=2, target_modules=["lm_head"], spectral=PISSA))
    with pytest.raises(ModelError, match="lm_head shares its weight"):
        export_residual(tied, tmp_path / "out")


def test_only_a_difference_has_a_residual(load, tmp_path):
    for name in ("lora", "dora", "polar"):
        with pytest.raises(ModelError, match="has no residual form"):
            export_residual(wrapped(load, CONFIGS[name]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_eva_exports_its_uneven_ranks(load, ids, tmp_path):
    spec = TypeAdapter(AdapterSpec).validate_python({"kind": "eva", "r": 3})
    model = moved(prepare_adapter(load("qwen3", torch.bfloat16), spec, [{"input_ids": ids}]))
    export_lora(model, tmp_path / "out")
    again = PeftModel.from_pretrained(load("qwen3", torch.bfloat16), tmp_path / "out")
    assert len({len(layer.lora_A["default"].weight) for layer in model.modules() if hasattr(layer, "lora_A")}) > 1
    assert torch.equal(answered(again, ids), answered(model, ids))
