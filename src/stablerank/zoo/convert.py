"""One GGUF file to a folder that plain ``from_pretrained`` loads: bfloat16 safetensors, tokenizer, chat template.

Numerics: blocks are dequantised in float32, then rounded once to bfloat16: at most 2^-9 of each weight, far below the
4-bit rounding that is already in the file, and half the folder.

The converter of transformers ignores ``tokenizer.ggml.pre``. For ``smollm`` that loses the step that sets each digit
apart before the words are split, so that a blank line before a number falls into other tokens than in training. It is
put back here.

Left out on purpose: other pre-tokenisers and architectures than the zoo needs.
"""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

SAVED_DTYPE = torch.bfloat16


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of ``gguf`` into ``folder``, readable by every user of the machine."""
    with redirect_stderr(io.StringIO()):  # the progress bars of transformers; errors are raised, not printed
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        ).to(SAVED_DTYPE)
        tokenizer = _smollm_tokenizer(gguf, model.config.max_position_embeddings)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors leaves 0600, which a cache shared between users cannot use


def greedy_reply(folder: Path, question: str, tokens: int = 16) -> str:
    """What the saved model answers, through its own chat template and without sampling."""
    with redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids_NT = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(ids_NT[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def _smollm_tokenizer(gguf: Path, context: int) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, model_max_length=context)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    return tokenizer
