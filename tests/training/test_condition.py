"""The callback in a real Trainer: when it measures, what it leaves, and that training does not feel it."""

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from stablerank.training.condition import ConditionCallback


def trained(folder, callbacks):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    )
    ids = torch.randint(0, 20, (16, 9), generator=torch.Generator().manual_seed(1)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids, "attention_mask": [[1] * 9] * 16})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=data, callbacks=callbacks).train()
    return model


def test_it_measures_when_due_and_changes_nothing(tmp_path):
    found = {}
    plain = trained(tmp_path / "plain", [])
    watched = trained(tmp_path / "watched", [ConditionCallback(found.__setitem__, every=2)])
    assert list(found) == [0, 2, 4]
    for step, blocks in found.items():
        assert len(blocks) == 7
        assert {block.step for block in blocks} == {step}
        assert {block.favours for block in blocks} <= {"spectral", "euclidean"}
    for (name, first), second in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in watched.modules())
