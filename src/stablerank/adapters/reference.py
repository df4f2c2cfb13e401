"""Make the reference policy of a plain TRL trainer right, or refuse: `guard_reference`.

Contract: the reference is the policy as it stood when this run's training began, before any initialiser touched it:
the base as stored, or the base plus the loaded adapter. Called after a trainer is constructed and before ``train()``,
the guard compares every weight with a separately loaded, untouched model, mends what has one right value, and refuses
what has none. KL = 0 is no evidence: TRL's reference adapter is a copy of the policy, and a damaged copy passes it.

What is mended, and where TRL leaves it:

- a base that an initialiser of PEFT turned into a residual (residual.py), once with ``peft_config`` and twice with a
  wrapped model, because ``add_adapter("ref")`` draws it again; and the missing reference adapter;
- tensors that TRL does not copy to its adapter "ref": it copies parameters named ``.default.``, so that those held in
  a ``ParameterDict`` (embeddings, new tokens) and buffers keep a first value;
- dropout in the adapter "ref", which is drawn anew in every reference pass;
- the first magnitudes of DoRA on a half-precision base, which PEFT rounds to it: the policy is off by some 1e-3.

Cost: the base is loaded a second time on the CPU and dropped again; some 16 vectors pass through each adapted layer.

Left out on purpose: DeepSpeed and FSDP, where a process does not hold whole weights; the frozen factors of a resumed
run (PEFT draws them again before a checkpoint is loaded, the same ones unless the initialiser is random).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from stablerank.adapters.residual import Residual, residual_initialiser
from stablerank.adapters.variants.base import is_quantised
from stablerank.errors import ModelError

TRAINERS = ("GRPOTrainer", "DPOTrainer", "KTOTrainer", "RLOOTrainer")
TOLERANCE = 1e-5
"""Relative error of a step-0 weight, or of a layer's answer, that is still rounding in fp32."""
_POLICY, _REFERENCE = "default", "ref"
_PROBES = 16


@dataclass(frozen=True)
class ReferenceReport:
    """What the reference policy of a trainer is, and how that is known."""

    reference: str
    checked: tuple[str, ...]
    mended: tuple[str, ...] = ()
    largest_error: float = 0.0
    """Largest relative error (Frobenius) of any weight of the policy or reference at step 0."""

    def __str__(self) -> str:
        mended = "; ".join(self.mended) or "nothing"
        return (
            f"Reference: {self.reference}. Checked: {'; '.join(self.checked)}. Mended: {mended}. "
            f"Largest relative error of a weight: {self.largest_error:.1e}."
        )


@dataclass(frozen=True)
class _Mend:
    what: str
    act: Callable[[], object]


@torch.no_grad()
def guard_reference(trainer: Trainer) -> ReferenceReport:
    """Make the reference policy of a TRL trainer the policy of before any initialiser, or refuse.

    ``trainer`` is a `GRPOTrainer`, `DPOTrainer`, `KTOTrainer` or `RLOOTrainer` (or of a subclass) that has not trained.
    Where no reference is in use (``beta=0`` in GRPO and RLOO) the policy alone is checked.

    Raises:
        ModelError: the trainer has trained, the untouched base cannot be loaded, or policy and reference cannot be
            made right; nothing has been changed then.
    """
    _refuse_trainer(trainer)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    # DPO and KTO have a `beta` too, which weighs their loss and takes no reference away.
    is_used = _kind(trainer) in ("DPOTrainer", "KTOTrainer") or trainer.beta != 0
    if not isinstance(policy, PeftModel):
        return _guard_model(trainer, policy, is_used)
    _refuse_adapters(trainer, policy, is_used)
    stored = _stored_model(policy)
    return _guard_adapter(trainer, policy, stored, is_used)


def _guard_model(trainer: Trainer, policy: nn.Module, is_used: bool) -> ReferenceReport:
    """Full fine-tuning: the reference is a model of its own, equal to the policy."""
    if not is_used:
        return ReferenceReport("none (beta is 0)", ("no initialiser touches a model that trains in full",))
    if trainer.ref_model is None:
        return ReferenceReport(
            "the policy itself, asked ahead of training", ("log-probabilities come from the policy",)
        )
    reference, ours_by_name = (
        dict(_tensors(trainer.accelerator.unwrap_model(model))) for model in (trainer.ref_model, policy)
    )
    for name, ours in ours_by_name.items():
        if (error := _error(ours, reference.get(name))) > 0:
            raise ModelError(
                f"The reference model's {name} differs from the policy's by {error:.1e} (relative, limit 0): TRL "
                "loads the reference from the folder that the model names, not from the model it is given; save the "
                "policy with `save_pretrained` and load it from there."
            )
    return ReferenceReport("a model of its own", (f"{len(ours_by_name)} tensors equal the policy's bit by bit",))


def _guard_adapter(trainer: Trainer, policy: PeftModel, stored: nn.Module, is_used: bool) -> ReferenceReport:
    initialiser = residual_initialiser(policy.peft_config[_POLICY])
    residuals = _residuals(policy, stored) if initialiser else []
    count = _check_base(policy, stored, {residual.name for residual in residuals})
    error = _check_residuals(residuals, initialiser, is_redrawn=_REFERENCE in policy.peft_config)
    mends = [
        *_residual_mends(policy, residuals, is_used),
        *_magnitude_mends(policy),
        *_reference_mends(policy, is_used),
    ]
    if mends and getattr(trainer.args, "precompute_ref_log_probs", False):
        raise ModelError(
            f"The reference's log-probabilities were computed ahead with a wrong reference ({mends[0].what}); set "
            "`precompute_ref_log_probs=False` and call guard_reference again."
        )
    for mend in mends:
        mend.act()
    checked = [f"{count} tensors of the base equal {_place(policy)} bit by bit"]
    checked += [f"{len(residuals)} residual weights ({initialiser})"] if residuals else []
    if _REFERENCE in policy.peft_config:
        checked.append("the adapter 'ref' equals 'default' tensor by tensor")
        reference = "the adapter 'ref', a copy of the policy at step 0"
    else:
        reference = "the base, adapter off" if is_used else "none (beta is 0)"
    if is_used and _REFERENCE not in policy.peft_config:
        error = max(error, _check_answers(policy))
        checked.append("every adapted layer answers as its base")
    return ReferenceReport(reference, tuple(checked), tuple(dict.fromkeys(mend.what for mend in mends)), error)


def _kind(trainer: Trainer) -> str | None:
    """The name of TRL's class, looked up by name: importing TRL's trainers takes seconds and the caller has done it."""
    return next((c.__name__ for c in type(trainer).__mro__ if c.__name__ in TRAINERS), None)


def _refuse_trainer(trainer: Trainer) -> None:
    if _kind(trainer) is None:
        raise ModelError(f"A {type(trainer).__name__} has no reference policy known here; give one of {TRAINERS}.")
    has_stepped = trainer.optimizer is not None and bool(trainer.optimizer.state)
    if trainer.state.global_step > 0 or has_stepped:
        raise ModelError(
            f"This {type(trainer).__name__} has trained {trainer.state.global_step} steps, and the policy at step 0 is "
            "gone; call guard_reference after constructing a trainer and before `train()`."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ModelError(
            "guard_reference compares whole weights, which DeepSpeed and FSDP shard; construct the same trainer in one "
            "process without them to check it, and train with the difference forms of `stablerank.peft`."
        )


def _refuse_adapters(trainer: Trainer, policy: PeftModel, is_used: bool) -> None:
    """Refuse what TRL's reference does not cover, by name."""
    names, active = sorted(set(policy.peft_config) - {_REFERENCE}), policy.active_adapters
    if names != [_POLICY] or active != [_POLICY]:
        raise ModelError(
            f"The policy has the adapters {names}, active {active}, but TRL copies one named 'default' to its "
            "reference; load one adapter under that name."
        )
    config = policy.peft_config[_POLICY]
    if not isinstance(config, LoraConfig) or config.target_parameters:
        raise ModelError(
            f"An adapter of type {config.peft_type.value} that is no LoRA on `target_modules` is not known here; use a "
            "LoRA-type adapter, without `target_parameters`."
        )
    if is_used and trainer.ref_model is not None:
        raise ModelError(
            "A PEFT policy with a `ref_model` of its own has two references; leave `ref_model` out, and the reference "
            "is the policy at step 0."
        )
    shared = [name for name, p in policy.named_parameters() if p.requires_grad and not _is_adapters(name)]
    if is_used and shared:
        raise ModelError(
            f"{shared[0]} (one of {len(shared)}) trains inside the base, so the reference would move with the policy; "
            'set `bias="none"` in the adapter, or freeze it.'
        )


def _stored_model(policy: PeftModel) -> PreTrainedModel:
    """The base once more, from the place it names, on the CPU where it is not quantised."""
    base, place = _base(policy), _place(policy)
    arguments: dict[str, Any] = {"dtype": base.dtype}
    if (quantisation := getattr(base.config, "quantization_config", None)) is not None:
        arguments |= {"quantization_config": quantisation, "device_map": {"": base.device}}
    try:
        if not place:
            raise OSError("the model names no folder or hub id")
        return type(base).from_pretrained(place, **arguments)
    except Exception as error:  # transformers raises many unrelated types for one bad folder
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The untouched base {place!r} cannot be loaded to compare with ({reason}), and a reference "
            "that nothing was compared with is not safe; save the model with `save_pretrained` and load it from there."
        ) from error


def _check_base(policy: PeftModel, stored: nn.Module, residual: set[str]) -> int:
    """Compare every tensor of the base but the residual ones, bit by bit; return how many there are."""
    theirs, count = dict(_tensors(stored)), 0
    for name, ours in _base_tensors(policy):
        if name in residual:
            continue
        there = theirs.get(name)
        if (error := _error(ours, None if there is None else there.to(ours.dtype))) > 0:
            raise ModelError(
                f"The base's {name} differs from the one stored in {_place(policy)!r} by {error:.1e} "
                "(relative, limit 0), so neither policy nor reference is that model; wrap a freshly loaded model, or "
                "save this one with `save_pretrained` and load it from there."
            )
        count += 1
    return count


def _residuals(policy: PeftModel, stored: nn.Module) -> list[Residual]:
    weights = dict(stored.named_parameters(remove_duplicate=False))
    found = [(name, layer) for name, layer in _layers(policy) if _POLICY in layer.lora_A]
    for name, layer in found:
        if is_quantised(layer.get_base_layer()):
            raise ModelError(
                f"{name} is quantised, and a residual base cannot be put back into it exactly; use a difference form "
                "of `stablerank.peft`, such as `PissaSpec`, which leaves the base alone."
            )
    return [Residual(f"{name}.weight", layer, weights[f"{name}.weight"]) for name, layer in found]


def _check_residuals(residuals: list[Residual], initialiser: str | None, is_redrawn: bool) -> float:
    """The largest error of a weight that is put back as well as its dtype allows; refuse an adapter that trained."""
    errors = {residual.name: residual.error() for residual in residuals}
    worst = max(errors, key=errors.__getitem__, default="")
    if errors.get(worst, 0.0) > TOLERANCE:
        dtype = str(residuals[0].weight.dtype).removeprefix("torch.")
        raise ModelError(
            f"The residual base of {initialiser!r} is rounded to {dtype}, so the policy at step 0 misses {worst} by "
            f"{errors[worst]:.1e} (relative, limit {TOLERANCE:.0e}); use a difference form of `stablerank.peft`, such "
            "as `PissaSpec`, or load the base in float32."
        )
    for residual in residuals:
        if (strange := residual.strangeness(int(is_redrawn))) > TOLERANCE:
            raise ModelError(
                f"The factors of {residual.name} are not those that {initialiser!r} drew for this base (off by "
                f"{strange:.1e} of the weight, limit {TOLERANCE:.0e}), so the adapter has trained and its base is "
                "lost; save it with `path_initial_model_for_weight_conversion` as plain LoRA and load that."
            )
    return errors.get(worst, 0.0)


def _check_answers(policy: PeftModel) -> float:
    """The largest relative error between an adapted layer's answers and its base's: the update must start at zero."""
    worst = 0.0
    for name, layer in _layers(policy):
        mode, inputs = layer.training, _inputs(layer)
        layer.eval()
        error = _error(layer(inputs), layer.get_base_layer()(inputs))
        layer.train(mode)
        worst = max(worst, error)
        if error > TOLERANCE:
            raise ModelError(
                f"The adapter changes {name} by {error:.1e} before its first step (relative, limit {TOLERANCE:.0e}), "
                "so the policy does not start from the reference; use an initialiser whose first update is zero, or "
                "wrap the model before it is given to the trainer where the adapter has trained."
            )
    return worst


def _residual_mends(policy: PeftModel, residuals: list[Residual], is_used: bool) -> Iterator[_Mend]:
    for residual in residuals:
        if not torch.equal(residual.weight, residual.wanted()):
            yield _Mend("the residual base", residual.write)
    if residuals and is_used and _REFERENCE not in policy.peft_config:
        yield _Mend("a missing adapter 'ref'", partial(_add_reference, policy))


def _add_reference(policy: PeftModel) -> None:
    """A frozen copy of the policy's factors; its configuration draws nothing into the base, and no dropout."""
    config = copy.deepcopy(policy.peft_config[_POLICY])
    config.init_lora_weights, config.lora_dropout = True, 0.0
    policy.add_adapter(_REFERENCE, config)
    for source, target in _pairs(policy):
        target.copy_(source)


def _magnitude_mends(policy: PeftModel) -> Iterator[_Mend]:
    """DoRA's first magnitude is the norm as its forward computes it, in fp32, not the norm rounded to the base."""
    for _, layer in _layers(policy):
        for adapter, magnitude in layer.lora_magnitude_vector.items():
            if type(magnitude) is not DoraLinearLayer or layer.lora_B[adapter].weight.any():
                continue
            weight = dequantize_module_weight(layer.get_base_layer())
            zero = magnitude.get_lora_weight(layer.lora_A[adapter], layer.lora_B[adapter])
            norm = magnitude.get_weight_norm(weight, zero, layer.scaling[adapter])
            if not torch.equal(norm, magnitude.weight):
                yield _Mend("DoRA's rounded magnitudes", partial(magnitude.weight.copy_, norm))


def _reference_mends(policy: PeftModel, is_used: bool) -> Iterator[_Mend]:
    """What TRL left behind in the adapter "ref"."""
    if not is_used or _REFERENCE not in policy.peft_config:
        return
    for source, target in _pairs(policy):
        if not torch.equal(source, target):
            yield _Mend("tensors not copied to 'ref'", partial(target.copy_, source))
    for _, layer in _layers(policy):
        if getattr(layer.lora_dropout[_REFERENCE], "p", 0.0) > 0:
            yield _Mend("dropout in 'ref'", partial(layer.lora_dropout.update, {_REFERENCE: nn.Identity()}))


def _pairs(policy: PeftModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Every tensor of the policy's adapter with its counterpart in the reference's."""
    tensors = dict(_tensors(policy))
    for name, source in tensors.items():
        parts = name.split(".")
        if _POLICY in parts:
            yield source, tensors[".".join(_REFERENCE if part == _POLICY else part for part in parts)]


def _layers(policy: PeftModel) -> list[tuple[str, LoraLayer]]:
    """The adapted layers under the names they have in the base."""
    return [(name, m) for name, m in _base(policy).named_modules() if isinstance(m, LoraLayer)]


def _inputs(layer: LoraLayer) -> Tensor:
    base, generator = layer.get_base_layer(), torch.Generator().manual_seed(0)
    if isinstance(base, nn.Embedding):
        return torch.randint(base.num_embeddings, (_PROBES,), generator=generator).to(base.weight.device)
    dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32
    return torch.randn(_PROBES, layer.in_features, generator=generator).to(base.weight.device, dtype)


def _base(policy: PeftModel) -> PreTrainedModel:
    return policy.get_base_model()


def _place(policy: PeftModel) -> str:
    """The folder or hub id that the base names; TRL loads a full reference from there."""
    return str(_base(policy).config._name_or_path or "")


def _base_tensors(policy: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the base inside the policy, under the names they have without an adapter."""
    for name, tensor in _tensors(_base(policy)):
        if not _is_adapters(name):
            yield name.replace(".base_layer", "").replace(".original_module", ""), tensor


def _is_adapters(name: str) -> bool:
    """PEFT names the adapter in every tensor it adds."""
    return not {_POLICY, _REFERENCE}.isdisjoint(name.split("."))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _error(ours: Tensor, theirs: Tensor | None) -> float:
    """Relative Frobenius distance; 0 means equal bit by bit, infinity that there is nothing to compare with."""
    if theirs is None or ours.shape != theirs.shape:
        return float("inf")
    theirs = theirs.to(ours.device)
    if ours.dtype == theirs.dtype and torch.equal(ours, theirs):
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(torch.float64).tiny))
