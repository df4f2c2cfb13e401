"""Whom a name means: models, adapters of PEFT and of ours, finished runs; and what is refused before weights load."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.specs import GeoraSpec
from stablerank.errors import ModelError, RecipeError, RunFolderError
from stablerank.evaluation.subjects import subject
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
IDS = torch.tensor([[20, 21, 22, 23]])


def student():
    return AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def trained(model):
    """With factors that change the output."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A LoRA of stock PEFT, and its logits."""
    folder = tmp_path_factory.mktemp("lora")
    model = trained(get_peft_model(student(), LoraConfig(r=2, target_modules=["q_proj", "o_proj"])))
    model.save_pretrained(folder)
    return folder, logits(model)


def a_run(path, model_files):
    """The folder that a finished run of the student leaves, as far as it is read here."""
    (path / "manifest.json").write_text(json.dumps({"recipe": {"model": {"path": STUDENT}}}))
    (path / "summary.json").write_text("{}")
    for file in model_files.iterdir():
        (path / "model").mkdir(exist_ok=True)
        (path / "model" / file.name).write_bytes(file.read_bytes())
    return path


def test_a_model(lora):
    found = subject(STUDENT)
    assert (found.name, found.base, found.adapter) == (STUDENT, resolve(STUDENT), None)
    assert torch.equal(logits(found.load()), logits(student()))
    assert found.context == 256
    assert found.tokenizer("1+1=?").input_ids == AutoTokenizer.from_pretrained(resolve(STUDENT))("1+1=?").input_ids


def test_an_adapter_by_itself_on_a_base_or_in_a_run(lora, tmp_path):
    folder, wanted = lora
    run = a_run(tmp_path, folder)
    for found in (subject(str(folder)), subject(STUDENT, str(folder)), subject(STUDENT, str(run)), subject(str(run))):
        assert found.base == resolve(STUDENT)
        assert torch.equal(logits(found.load()), wanted)
    assert not torch.equal(wanted, logits(student()))
    assert subject(STUDENT, str(folder)).name == f"{STUDENT} + {folder}"


def test_an_adapter_of_ours_in_its_own_form(tmp_path):
    model = trained(prepare_adapter(student(), GeoraSpec(r=2)))
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(subject(STUDENT, str(tmp_path)).load()), logits(model), atol=1e-5)
    assert not torch.allclose(logits(model), logits(student()), atol=1e-2)


def test_a_run_that_trained_the_model_itself(tmp_path):
    model = student()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    (tmp_path / "weights").mkdir()
    model.save_pretrained(tmp_path / "weights")
    (tmp_path / "run").mkdir()
    found = subject(str(a_run(tmp_path / "run", tmp_path / "weights")))
    assert found.adapter is None
    assert torch.equal(logits(found.load()), logits(model))


def test_the_tokenizer_of_an_adapter_goes_before_that_of_its_base(lora, tmp_path):
    run = a_run(tmp_path, lora[0])
    tokenizer = AutoTokenizer.from_pretrained(resolve(STUDENT))
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(run / "model")
    assert subject(str(run)).tokenizer.chat_template == tokenizer.chat_template
    assert subject(STUDENT).tokenizer.chat_template != tokenizer.chat_template


def test_files_written_again_are_another_model(lora, tmp_path):
    run = a_run(tmp_path, lora[0])
    before = subject(str(run)).files()
    assert subject(str(run)).files() == before
    (run / "model" / "adapter_model.safetensors").write_bytes(b"other")
    assert subject(str(run)).files() != before
    assert subject(STUDENT).files() != before


def test_what_is_refused_before_weights_load(lora, tmp_path):
    folder, _ = lora
    with pytest.raises(RecipeError, match="has an adapter already; drop `--adapter`"):
        subject(str(folder), str(folder))
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        subject(STUDENT, str(tmp_path))
    with pytest.raises(ModelError, match="does not exist"):
        subject("./nowhere/at/all")
    run = a_run(tmp_path, folder)
    (run / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="is not finished"):
        subject(str(run))
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    (nameless / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not say which base it is of"):
        subject(str(nameless))
