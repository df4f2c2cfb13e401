"""Make the reference policy of a plain TRL trainer right, or refuse: `guard_reference`.

Contract: the reference is the policy as it stood when this run's training began, before any initialiser touched it:
the base as stored, or the base plus the loaded adapter. Called after a trainer is constructed and before ``train()``,
the guard compares every weight with a separately loaded, untouched model, mends what has one right value, and refuses
what has none. KL = 0 is no evidence: TRL's reference adapter is a copy of the policy, and a damaged copy passes it.

What is mended, and where TRL leaves it:

- a base that an initialiser of PEFT turned into a residual (residual.py), once with ``peft_config`` and twice with a
  wrapped model, because ``add_adapter("ref")`` draws it again; and the missing reference adapter;
- tensors that TRL does not copy to its adapter "ref": it copies parameters named ``.default.``, so that those held in
  a ``ParameterDict`` (embeddings, new tokens) and buffers keep a first value; and factors on a quantised base, which
  it rounds to bf16 in the policy alone;
- dropout in the adapter "ref", which is drawn anew in every reference pass;
- the first magnitudes of DoRA on a half-precision base, which PEFT rounds to it: the policy is off by some 1e-3.

Cost: the base is loaded a second time on the CPU and dropped again; some 16 vectors pass through each adapted layer.

Left out on purpose: DeepSpeed and FSDP, where a process does not hold whole weights; resuming a residual base whose
initialiser is random (``pissa_niter_N``, ``lora_ga``): its checkpoint does not hold the base, and what is drawn again
is another one. Our difference forms keep their first factors in the checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from stablerank.adapters.policy_tensors import (
    POLICY,
    REFERENCE,
    adapted_layers,
    base_of,
    base_tensors,
    is_adapters,
    relative_error,
    stored_at,
    tensors_of,
)
from stablerank.adapters.reference_mends import Mend, magnitude_mends, reference_mends, residual_mends
from stablerank.adapters.residual import Residual, residual_initialiser
from stablerank.adapters.variants.base import is_quantised
from stablerank.errors import ModelError

TRAINERS = ("GRPOTrainer", "DPOTrainer", "KTOTrainer", "RLOOTrainer")
TOLERANCE = 1e-5
"""Relative error of a step-0 weight, or of a layer's answer, that is still rounding in fp32."""
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


@torch.no_grad()
def guard_reference(trainer: Trainer) -> ReferenceReport:
    """Make the reference policy of a TRL trainer the policy of before any initialiser, or refuse.

    ``trainer`` is a `GRPOTrainer`, `DPOTrainer`, `KTOTrainer` or `RLOOTrainer` (or of a subclass) that has not trained.
    Where no reference is in use (``beta=0`` in GRPO and RLOO) the policy alone is checked.

    Raises:
        ModelError: the trainer has trained, the untouched base cannot be loaded, or policy and reference cannot be
            made right.
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
        dict(tensors_of(trainer.accelerator.unwrap_model(model))) for model in (trainer.ref_model, policy)
    )
    for name, ours in ours_by_name.items():
        # A zero bias that was added for training (BitFit) is no difference.
        theirs = reference.get(name, torch.zeros_like(ours) if name.endswith(".bias") else None)
        if (error := relative_error(ours, theirs)) > 0:
            raise ModelError(
                f"The reference model's {name} differs from the policy's by {error:.1e} (relative, limit 0): TRL "
                "loads the reference from the folder that the model names, not from the model it is given; save the "
                "policy with `save_pretrained` and load it from there."
            )
    return ReferenceReport("a model of its own", (f"{len(ours_by_name)} tensors equal the policy's bit by bit",))


def _guard_adapter(trainer: Trainer, policy: PeftModel, stored: nn.Module, is_used: bool) -> ReferenceReport:
    """An adapter: the reference is the base alone, or TRL's frozen copy of the adapter on it."""
    initialiser = residual_initialiser(policy.peft_config[POLICY])
    residuals = _residuals(policy, stored) if initialiser else []
    count = _check_base(policy, stored, {residual.name for residual in residuals})
    error = _check_residuals(residuals, initialiser, is_redrawn=REFERENCE in policy.peft_config)
    checked = [f"{count} tensors of the base equal {stored_at(policy)} bit by bit"]
    if residuals:
        checked.append(f"{len(residuals)} residual weights plus their first products ({initialiser}) give its weights")
    mends = [
        *residual_mends(policy, residuals, is_used),
        *magnitude_mends(policy),
        *reference_mends(policy, is_used),
    ]
    _refuse_asked_ahead(trainer, mends)
    for mend in mends:
        mend.act()
    if not is_used:
        reference = "none (beta is 0)"
    elif REFERENCE in policy.peft_config:
        reference = "the adapter 'ref', a copy of the policy at step 0"
        checked.append("'ref' equals 'default' tensor by tensor")
    else:
        reference, error = "the base, adapter off", _check_answers(policy)
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


def _refuse_asked_ahead(trainer: Trainer, mends: list[Mend]) -> None:
    if mends and getattr(trainer.args, "precompute_ref_log_probs", False):
        raise ModelError(
            f"The reference's log-probabilities were computed ahead with a wrong reference ({mends[0].what}); set "
            "`precompute_ref_log_probs=False` and call guard_reference again."
        )


def _refuse_adapters(trainer: Trainer, policy: PeftModel, is_used: bool) -> None:
    """Refuse what TRL's reference does not cover, by name."""
    names, active = sorted(set(policy.peft_config) - {REFERENCE}), policy.active_adapters
    if names != [POLICY] or active != [POLICY]:
        raise ModelError(
            f"The policy has the adapters {names}, active {active}, but TRL copies one named 'default' to its "
            "reference; load one adapter under that name."
        )
    config = policy.peft_config[POLICY]
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
    shared = [name for name, p in policy.named_parameters() if p.requires_grad and not is_adapters(name)]
    if is_used and shared:
        raise ModelError(
            f"{shared[0]} (one of {len(shared)}) trains inside the base, so the reference would move with the policy; "
            'set `bias="none"` in the adapter, or freeze it.'
        )


def _stored_model(policy: PeftModel) -> PreTrainedModel:
    """The base once more, from the place it names, on the CPU where it is not quantised."""
    base, place = base_of(policy), stored_at(policy)
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
    theirs, count = dict(tensors_of(stored)), 0
    for name, ours in base_tensors(policy):
        if name in residual:
            continue
        there = theirs.get(name)
        if (error := relative_error(ours, None if there is None else there.to(ours.dtype))) > 0:
            raise ModelError(
                f"The base's {name} differs from the one stored in {stored_at(policy)!r} by {error:.1e} "
                "(relative, limit 0), so neither policy nor reference is that model; wrap a freshly loaded model, or "
                "save this one with `save_pretrained` and load it from there."
            )
        count += 1
    return count


def _residuals(policy: PeftModel, stored: nn.Module) -> list[Residual]:
    weights = dict(stored.named_parameters(remove_duplicate=False))
    found = [(name, layer) for name, layer in adapted_layers(policy) if POLICY in layer.lora_A]
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
    for name, layer in adapted_layers(policy):
        base, mode, inputs = layer.get_base_layer(), layer.training, _inputs(layer)
        layer.eval()
        base.train()  # in evaluation on the CPU, bitsandbytes packs its weights anew and for good
        error = relative_error(layer(inputs), base(inputs))
        layer.train(mode)
        worst = max(worst, error)
        if error > TOLERANCE:
            raise ModelError(
                f"The adapter changes {name} by {error:.1e} before its first step (relative, limit {TOLERANCE:.0e}), "
                "so the policy does not start from the reference; use an initialiser whose first update is zero, or "
                "wrap the model before it is given to the trainer where the adapter has trained."
            )
    return worst


def _inputs(layer: LoraLayer) -> Tensor:
    base, generator = layer.get_base_layer(), torch.Generator().manual_seed(0)
    if isinstance(base, nn.Embedding):
        return torch.randint(base.num_embeddings, (_PROBES,), generator=generator).to(base.weight.device)
    dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32
    return torch.randn(_PROBES, layer.in_features, generator=generator).to(base.weight.device, dtype)
