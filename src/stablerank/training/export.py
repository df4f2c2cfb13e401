"""Merge a run's adapter into its base, once, in fp32."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.errors import RunFolderError
from stablerank.runs.folder import RunFolder
from stablerank.zoo.resolve import resolve


def merge(run: Path, out: Path) -> Path:
    """Write base plus adapter as one plain model folder that needs neither PEFT nor this library.

    The sum is formed in fp32 and rounded once to the dtype the run trained in.

    Raises:
        RunFolderError: the run is unfinished, trained all weights (nothing to merge), or ``out`` is not empty.
    """
    folder = RunFolder(run)
    recipe = folder.manifest()["recipe"]
    folder.summary()
    if not (folder.model_path / "adapter_config.json").exists():
        raise RunFolderError(
            f"{run} trained the model's own weights, so nothing is left to merge; use {folder.model_path} itself."
        )
    if out.exists() and any(out.iterdir()):
        raise RunFolderError(f"{out} is not empty; choose another folder with `--out FOLDER`.")
    base = AutoModelForCausalLM.from_pretrained(resolve(recipe["model"]["path"]), dtype=torch.float32)
    config = SpectralLoraConfig.from_pretrained(str(folder.model_path))
    merged = PeftModel.from_pretrained(base, folder.model_path, config=config).merge_and_unload()
    unfinished = out.with_name(f".{out.name}.unfinished")
    merged.to(getattr(torch, recipe["model"]["dtype"])).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(folder.model_path).save_pretrained(unfinished)
    unfinished.replace(out)
    return out
