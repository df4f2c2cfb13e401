"""Whom to evaluate: from what a user names to a model that is ready to generate.

A name is ``zoo:NAME``, a model folder, a hub id, the folder of a PEFT adapter (ours included), or a finished run.

Contract: `subject` resolves and checks names and reads no weights, so that a wrong one is a sentence at once; `load`
does the rest. The tokenizer is that of the adapter's folder where it holds one, else that of the base.

Left out on purpose: ``trust_remote_code``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# Whose imports teach PEFT our adapters.
from stablerank.adapters.adapt import adapter_folder
from stablerank.errors import ModelError, RecipeError
from stablerank.probes.measure_folder import fingerprint
from stablerank.runs.folder import RunFolder
from stablerank.zoo.resolve import resolve


@dataclass(frozen=True)
class Subject:
    """One policy: the folder or hub id of its base, and the folder of its adapter."""

    name: str
    base: str
    adapter: Path | None
    dtype: str

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """As it was saved; ModelError where there is none."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        tokenizer = self._loaded(AutoTokenizer.from_pretrained, str(self.adapter) if own else self.base)
        # Without its files, transformers makes one that knows special tokens alone.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ModelError(f"{self.name} holds no tokenizer; write it there with `tokenizer.save_pretrained`.")
        return tokenizer

    @cached_property
    def context(self) -> int | None:
        """Tokens that prompt and completion may have together; None where the model names no limit."""
        config = self._loaded(AutoConfig.from_pretrained, self.base)
        return getattr(config, "max_position_embeddings", None)

    def load(self) -> PreTrainedModel:
        """The model with its adapter, on the GPU if there is one."""
        model = self._loaded(AutoModelForCausalLM.from_pretrained, self.base, dtype=getattr(torch, self.dtype))
        if self.adapter is not None:
            model = self._loaded(PeftModel.from_pretrained, model, str(self.adapter))
        return model.to("cuda" if torch.cuda.is_available() else "cpu")

    def files(self) -> str:
        """A hash of the local files' names, sizes and times; a hub id stands for itself."""
        folders = [folder for folder in (Path(self.base), self.adapter) if folder is not None and folder.is_dir()]
        return fingerprint(str(file) for folder in folders for file in folder.iterdir() if file.is_file())

    def _loaded(self, load: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        try:
            return load(*arguments, **settings)
        except Exception as error:  # transformers and PEFT raise many unrelated types for one bad folder
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{self.name} cannot be loaded ({type(error).__name__}: {reason}); give `zoo:NAME` (see `stablerank "
                "zoo list`) or a folder that save_pretrained wrote."
            ) from error


def subject(name: str, adapter: str | None = None, dtype: str = "float32") -> Subject:
    """Resolve a name, with an adapter's folder (or a run) on top if one is given.

    Raises:
        StablerankError: nothing is there, the run is unfinished, or an adapter is named for what has one already.
    """
    if is_run(name):
        found = _run(RunFolder(Path(name).expanduser()), dtype)
    elif _is_adapter(name):
        found = Subject(name, _base_of(Path(name).expanduser()), Path(name).expanduser(), dtype)
    else:
        found = Subject(name, resolve(name), None, dtype)
    return found if adapter is None else _with_adapter(found, adapter)


def is_run(name: str) -> bool:
    """Whether a name is the folder of a training run."""
    return _holds(name, "manifest.json")


def _is_adapter(name: str) -> bool:
    return _holds(name, "adapter_config.json")


def _holds(name: str, file: str) -> bool:
    """Whether a folder that is no model's holds a file."""
    folder = Path(name).expanduser()
    return (folder / file).is_file() and not (folder / "config.json").is_file()


def _run(run: RunFolder, dtype: str) -> Subject:
    recipe = run.manifest()["recipe"]
    run.summary()  # refuses an unfinished run
    if (run.model_path / "adapter_config.json").is_file():
        return Subject(str(run.path), resolve(recipe["model"]["path"]), run.model_path, dtype)
    return Subject(str(run.path), resolve(str(run.model_path)), None, dtype)


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"Adapter {adapter} does not say which base it is of; give the base as the model and the folder with "
            "`--adapter`."
        )
    return resolve(base)


def _with_adapter(found: Subject, adapter: str) -> Subject:
    if found.adapter is not None:
        raise RecipeError(f"{found.name} has an adapter already; drop `--adapter`, or give the base as the model.")
    folder = adapter_folder(adapter)
    if folder is None:
        raise ModelError(f"{adapter} holds no PEFT adapter; give the folder with its adapter_config.json, or a run.")
    return Subject(f"{found.name} + {adapter}", found.base, folder, found.dtype)
