"""From a model folder, or the folder of an adapter, to an adapter folder in the form that is asked for.

Forms: ``native`` is the method's own parameterisation (``import stablerank.peft`` reads it); ``lora`` is plain LoRA on
the untouched base (export.py); ``residual`` is a base of its own with plain LoRA on it (export_residual.py).

Contract: the output folder is checked before anything is loaded, and is whole or absent. The base is loaded in the
dtype it is stored in; factors are computed and written in fp32 all the same.

Left out on purpose: adapters of other families than LoRA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import yaml
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from pydantic import Field, TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from stablerank.adapters.cards import native_card
from stablerank.adapters.export import Exported, base_fingerprint, described, export_lora, method_name
from stablerank.adapters.export_residual import ResidualExport, export_residual
from stablerank.adapters.prepare import NEEDS_DATA, Batch, Progress, prepare_adapter
from stablerank.adapters.specs import LowRankSpec
from stablerank.errors import DataError, ModelError, RecipeError
from stablerank.runs.atomic import refuse_occupied, whole_folder, write_text
from stablerank.zoo.resolve import resolve

Form = Literal["native", "lora", "residual"]

_LONGEST = 512


@dataclass(frozen=True)
class Adapted:
    """What was written."""

    method: str
    form: Form
    adapter: Exported
    residual: ResidualExport | None
    trainable: int
    """Parameters that train where the folder is loaded for training."""
    needs_us: bool = False
    """Whether loading it takes ``import stablerank.peft``."""
    starts_doubled: bool = False
    """Whether it is an untrained difference as LoRA of twice the rank."""


def adapt(
    model: str,
    spec: LowRankSpec,
    out: str | Path,
    form: Form = "native",
    *,
    dtype: torch.dtype = torch.float32,
    calibration: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Adapted:
    """Start an adapter on a model and write it.

    Args:
        model: ``zoo:NAME``, a folder or a hub id.
        spec: the adapter.
        out: a folder that is empty or does not exist.
        form: see above.
        dtype: of the residual base; the other forms write no base.
        calibration: a text file, one sample a line, for the kinds that start from data.
        seed: of what is drawn.
        progress: told after each factorised layer.

    Raises:
        StablerankError: the folder is occupied, the model cannot be loaded, or the adapter does not fit it.
    """
    out = Path(out)
    refuse_occupied(out)
    if (spec.kind in NEEDS_DATA) != (calibration is not None):
        raise RecipeError(_calibration_sentence(spec.kind))
    base, tokenizer = _loaded(model)
    set_seed(seed)
    batches = [] if calibration is None else _tokenised(calibration, tokenizer, base)
    wrapped = prepare_adapter(base, spec, batches, progress)
    done = _write(wrapped, tokenizer, out, form, dtype)
    return replace(done, starts_doubled=form == "lora" and done.adapter.rank > wrapped.peft_config["default"].r)


def convert(
    folder: str | Path,
    out: str | Path,
    form: Form = "lora",
    *,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
) -> Adapted:
    """Write an adapter that exists, trained or not, in another form.

    Args:
        folder: of the adapter, as `adapter_folder` finds it.
        out: a folder that is empty or does not exist.
        form: see above.
        dtype: of the residual base.
        base: where the base is now, if not where the adapter says.

    Raises:
        StablerankError: the folder is occupied, adapter or base cannot be loaded, or the form does not exist for it.
    """
    out = Path(out)
    refuse_occupied(out)
    if form == "native":
        raise RecipeError(f"{folder} is an adapter already; write it with `--form lora` or `--form residual`.")
    config = _loading(f"Adapter {folder}", PeftConfig.from_pretrained, str(folder))
    named = base or config.base_model_name_or_path
    if not named:
        raise ModelError(f"Adapter {folder} does not say which base it is of; name it with `--base`.")
    model, tokenizer = _loaded(named)
    wrapped = _loading(f"Adapter {folder}", PeftModel.from_pretrained, model, str(folder))
    if base is not None:
        wrapped.peft_config["default"].base_model_name_or_path = resolve(base)
    return _write(wrapped, tokenizer, out, form, dtype)


def adapter_folder(path: str) -> Path | None:
    """The adapter in a folder or in a run folder; None where there is none, as for a model."""
    places = (Path(path).expanduser(), Path(path).expanduser() / "model")
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def parse_spec(kind: str, settings: Sequence[str]) -> LowRankSpec:
    """The spec of a kind with ``key=value`` settings, values parsed as YAML.

    Raises:
        RecipeError: no such kind or setting, a value it cannot have, or a kind without an adapter to write.
    """
    raw: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in ("", "kind"):
            raise RecipeError(f"Setting {setting!r} is not KEY=VALUE of the method; write it like `r=16`.")
        try:
            raw[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"Setting {setting!r}: the value is not YAML; quote it for your shell.") from error
    try:
        return _LOW_RANK.validate_python({**raw, "kind": kind})
    except ValidationError as error:
        raise RecipeError(_sentence(error, kind)) from error


def _sentence(error: ValidationError, kind: str) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "union_tag_invalid":
        kinds = ", ".join(sorted(_KINDS))
        return f"--spec {kind!r} is no adapter to write; the kinds are {kinds} (others train the model's own weights)."
    if first["type"] == "extra_forbidden":
        known = ", ".join(name for name in _KINDS[kind].model_fields if name != "kind")
        return f"{kind} has no setting {where!r}; its settings are {known}."
    if first["type"] == "missing":
        return f"{kind} needs {where!r}, which has no default; add `{where}=VALUE`."
    message = first["msg"]
    return f"{kind}: {where}={first['input']!r:.100} is refused, {message[0].lower()}{message[1:]}; give such a value."


def _calibration_sentence(kind: str) -> str:
    if kind in NEEDS_DATA:
        return f"{kind} starts from the inputs of the layers; give text of your task with `--calibration FILE`."
    return f"{kind} reads no data; drop `--calibration`, or choose one of {', '.join(NEEDS_DATA)}."


def _loaded(named: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A model in its stored dtype, and its tokenizer if it has one."""
    place = resolve(named)
    model = _loading(f"Model {named}", AutoModelForCausalLM.from_pretrained, place, dtype="auto")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception:  # no tokenizer is no error here, and transformers has many types for it
        return model, None
    # Without its files, transformers makes one that knows special tokens alone.
    return model, tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _loading(what: str, load: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    try:
        return load(*arguments, **settings)
    except Exception as error:  # transformers and PEFT raise many unrelated types for one bad folder
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{what} cannot be loaded ({type(error).__name__}: {reason}); give a folder that save_pretrained wrote."
        ) from error


def _tokenised(file: Path, tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel) -> list[Batch]:
    """One sequence a line of text, cut to what the model reads."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Calibration file {file} cannot be read as text ({error}); give one sample a line.") from error
    if tokenizer is None:
        raise DataError(
            "The model's folder holds no tokenizer to read `--calibration` with; save it beside the weights."
        )
    longest = min(_LONGEST, getattr(model.config, "max_position_embeddings", _LONGEST))
    rows = (tokenizer(line, truncation=True, max_length=longest)["input_ids"] for line in lines)
    return [{"input_ids": torch.tensor([row])} for row in rows if row]


def _write(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase | None, out: Path, form: Form, dtype: torch.dtype
) -> Adapted:
    method = method_name(model.peft_config["default"])
    if form == "residual":
        residual = export_residual(model, out, dtype=dtype, tokenizer=tokenizer)
        return Adapted(method, form, residual.adapter, residual, residual.adapter.parameters)
    if form == "lora":
        written = export_lora(model, out)
        return Adapted(method, form, written, None, written.parameters)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    needs_us = bool(model.peft_config["default"].spectral)
    return Adapted(method, form, _write_native(model, out), None, trainable, needs_us)


def _write_native(model: PeftModel, out: Path) -> Exported:
    config = model.peft_config["default"]
    if not config.spectral:  # PEFT's own methods are at home in PEFT's own format
        return export_lora(model, out)
    print_of_base = base_fingerprint(model)
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        written = described(out, get_peft_model_state_dict(model), config, print_of_base)
        write_text(folder / "README.md", native_card(method_name(config), written.base, print_of_base))
    return written


_LOW_RANK: TypeAdapter[LowRankSpec] = TypeAdapter(Annotated[LowRankSpec, Field(discriminator="kind")])
_KINDS = {get_args(member.model_fields["kind"].annotation)[0]: member for member in get_args(LowRankSpec)}
