"""Entries off the mask keep their bits, whatever accumulates, clips, steps or resumes."""

import math
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from stablerank.adapters.inits.geora import union_mask
from stablerank.adapters.selective.sparse import kept_shares, target_layers, train_sparse
from stablerank.errors import ModelError, RecipeError

ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(3, 48, (24, 10)).tolist()]


def trainer_of(model, folder: Path, **settings):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_grad_norm=0.05,
        learning_rate=1e-2,
        max_steps=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=ROWS)


def masks_of(model):
    return {f"{name}.weight": layer.trained_mask_OI for name, layer in target_layers(model).items()}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_mask_is_the_union_of_small_entries_of_weight_and_head(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = numpy.linalg.svd(weight.double().numpy(), full_matrices=False)
    head = numpy.abs(u[:, :4] * values[:4] @ vh[:4]).astype(numpy.float32)
    small = numpy.abs(weight.numpy())
    count = round(0.2 * weight.numel())
    spectral, euclidean = (entries <= numpy.sort(entries, axis=None)[count - 1] for entries in (head, small))
    assert (union_mask(weight, 4, 0.2, True, True).numpy() == (spectral | euclidean)).all()
    assert (union_mask(weight, 4, 0.2, True, False).numpy() == spectral).all()
    assert (union_mask(weight, 4, 0.2, False, True).numpy() == euclidean).all()


def test_a_rank_beyond_the_matrix_takes_all_of_it(load):
    model = train_sparse(load("qwen3"), rho=0.3, rank=1000)
    assert all(abs(share - 0.3) < 0.01 for share in kept_shares(model).values()), "both masks are one, up to rounding"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
def test_a_real_trainer_leaves_everything_off_the_mask_bitwise(load, tmp_path, architecture):
    base, model = load(architecture).state_dict(), train_sparse(load(architecture), rank=4)
    masks, shares = masks_of(model), kept_shares(model)
    assert shares == {name: mask.double().mean().item() for name, mask in masks.items()}
    assert all(0.2 < share < 0.4 for share in shares.values())
    trainer = trainer_of(model, tmp_path, save_strategy="no")
    trainer.train()
    for name, value in model.state_dict().items():
        frozen = ~masks[name] if name in masks else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[frozen], base[name][frozen]), name
        if name in masks:
            assert (value != base[name])[masks[name]].double().mean() > 0.95, name
            state = trainer.optimizer.state[model.get_parameter(name)]
            assert not state["exp_avg"][frozen].any() and not state["exp_avg_sq"][frozen].any()


def test_clipping_sees_the_norm_of_the_masked_gradient(load, tmp_path, ids):
    model, whole = train_sparse(load("llama"), rank=4), load("llama")
    for part in ids.split(1):  # accumulated
        model(part, labels=part).loss.backward()
        whole(part, labels=part).loss.backward()
    masked = [whole.get_parameter(name).grad[mask] for name, mask in masks_of(model).items()]
    expected = torch.cat(masked).double().norm().item()
    assert math.isclose(
        torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None), expected, rel_tol=1e-5
    )
    assert expected < 0.8 * torch.nn.utils.get_total_norm(p.grad for p in whole.parameters())


def test_an_overflowed_gradient_stays_zero_off_the_mask(load):
    model = train_sparse(load("llama"), rank=4)
    layer = next(iter(target_layers(model).values()))
    (layer.weight * math.inf).sum().backward()
    assert torch.equal(layer.weight.grad == 0, ~layer.trained_mask_OI)


def test_a_resume_goes_on_with_the_masks_of_the_base(load, tmp_path):
    once = train_sparse(load("llama"), rank=4)
    trainer_of(once, tmp_path / "run").train()
    again = train_sparse(load("llama"), rank=4)
    trainer_of(again, tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    saved, report = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4", output_loading_info=True)
    assert not report["unexpected_keys"] and set(saved.state_dict()) == set(load("llama").state_dict())


def test_targets_are_read_as_peft_reads_them(load):
    assert {name.rpartition(".")[2] for name in target_layers(load("gpt_neox"))} == {
        "query_key_value",
        "dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
    }
    assert list(target_layers(load("llama"), ["q_proj"])) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert list(target_layers(load("llama"), r".*\.1\.mlp\.up_proj")) == ["model.layers.1.mlp.up_proj"]
    with pytest.raises(ModelError, match=r"targets=\['nowhere'\]"):
        train_sparse(load("llama"), targets=["nowhere"])


def test_no_mask_and_a_second_call_are_refused(load):
    with pytest.raises(RecipeError, match="both are off"):
        train_sparse(load("llama"), spectral_mask=False, euclidean_mask=False)
    model = train_sparse(load("llama"), rank=4)
    with pytest.raises(ModelError, match="has masks already"):
        train_sparse(model, rank=4)
