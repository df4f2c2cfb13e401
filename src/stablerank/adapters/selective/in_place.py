"""What training a model's own parameters asks of the model, and full fine-tuning, which asks no more.

Contract: the model is changed in place and stays a ``PreTrainedModel`` that stock transformers saves and loads. The
reference policy is the folder it was loaded from (``config._name_or_path``), which TRL loads again.

Numerics: the parameters are fp32 masters; bf16 ones swallow steps below half a unit of their last place. Training in
bfloat16 means autocast over them (``bf16=True`` of a trainer). Models on the meta device may have any dtype.

Left out on purpose: fp32 masters of the trained parameters alone beside a bf16 rest, which `torch.nn.functional.linear`
refuses for a bias; sharded parameters (FSDP, DeepSpeed ZeRO-3), which the masks of sparse.py would not reach.
"""

import torch
from transformers import PreTrainedModel

from stablerank.errors import ModelError


def train_all(model: PreTrainedModel) -> PreTrainedModel:
    """Full fine-tuning: every parameter trains.

    Raises:
        ModelError: the model is wrapped by PEFT, quantised, or not in fp32.
    """
    require_in_place(model, "Full fine-tuning")
    return model.requires_grad_(True)


def require_in_place(model: PreTrainedModel, method: str) -> None:
    """Refuse a model whose own parameters cannot train.

    Raises:
        ModelError: the model is wrapped by PEFT, quantised, or not in fp32.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{method} trains a model's own parameters, but this is a {name}, whose reference would be the adapter "
            "switched off; save `model.merge_and_unload()` and load that folder."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(
            f"{method} trains {name}'s own parameters, but they are quantised; load the model unquantised, or train "
            "a low-rank adapter (`kind: lora`)."
        )
    dtypes = {parameter.dtype for parameter in model.parameters() if not parameter.is_meta}
    if low := sorted(str(dtype) for dtype in dtypes - {torch.float32, torch.float64}):
        raise ModelError(
            f"{method} needs fp32 masters, but {name} holds {', '.join(low)}, which swallows small steps; load it with "
            "`dtype=torch.float32` and train with `bf16=True` (autocast)."
        )
