"""A copy of what a policy trains, at one step, that stands in for the policy during a pass.

For rewards that read a model which follows the policy from afar. The KL reference is another matter and stays the one
that the run began with.

Contract: whatever the adapter, the copy holds every parameter that trains and nothing else, so it is small beside a
model under LoRA and as large as the weights under full training. Inside `Snapshot.swapped` the policy answers as it
did when the copy was taken, dropout off; after it, also where a pass raises, the policy's own tensors are back, the
same objects and bits. A checkpoint holds the copy beside the policy, so a resumed run reads what an unbroken one reads.

The copy of before the first step is taken when it is first read, later ones by `SnapshotCallback`: at step s a reward
reads the policy of the largest multiple of ``refresh`` up to s.

Left out on purpose: sharded weights (FSDP, DeepSpeed), buffers (no adapter here trains one), averages over steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "snapshot.safetensors"
"""Its place in a checkpoint."""


class Snapshot:
    """One copy; empty until `take` or `load`."""

    def __init__(self) -> None:
        self.is_in = False
        """Whether the policy stands as the copy now."""
        self._kept: dict[str, Tensor] = {}

    @property
    def is_taken(self) -> bool:
        """Whether there is a copy."""
        return bool(self._kept)

    def take(self, policy: nn.Module) -> None:
        """Copy what ``policy`` trains, as it is now."""
        self._kept = {name: parameter.detach().clone() for name, parameter in _trained(policy)}

    @contextmanager
    def swapped(self, policy: nn.Module) -> Iterator[None]:
        """The policy as the copy, in evaluation mode; without a copy one is taken now."""
        if not self.is_taken:
            self.take(policy)
        modes = [(module, module.training) for module in policy.modules()]
        self._exchange(policy)
        try:
            policy.eval()
            yield
        finally:
            self._exchange(policy)
            for module, mode in modes:
                module.training = mode

    def save(self, checkpoint: Path) -> None:
        """Write the copy into a checkpoint folder."""
        save_file({name: tensor.contiguous() for name, tensor in self._kept.items()}, checkpoint / FILE)

    def load(self, checkpoint: Path, policy: nn.Module) -> None:
        """Read the copy of a checkpoint of this policy.

        Raises:
            FileNotFoundError: the checkpoint is of a run without snapshots.
            ValueError: it is of another policy.
        """
        found = load_file(checkpoint / FILE)
        wanted = dict(_trained(policy))
        if {name: tensor.shape for name, tensor in found.items()} != {name: p.shape for name, p in wanted.items()}:
            raise ValueError(f"{checkpoint / FILE} holds other parameters than this policy trains")
        self._kept = {name: found[name].to(parameter) for name, parameter in wanted.items()}

    def _exchange(self, policy: nn.Module) -> None:
        """Policy and copy trade tensors, none is copied: twice is nothing at all."""
        for name, parameter in _trained(policy):
            parameter.data, self._kept[name] = self._kept[name], parameter.data
        self.is_in = not self.is_in
        # Autocast keeps half-precision copies by parameter, and a parameter is still the same object.
        torch.clear_autocast_cache()


def _trained(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad)


class SnapshotCallback(TrainerCallback):
    """Call ``take`` after every ``refresh`` optimiser steps."""

    def __init__(self, refresh: int, take: Callable[[], None]) -> None:
        self.refresh, self.take = refresh, take

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take a new snapshot when one is due; a checkpoint of this step comes after it and holds it."""
        if state.global_step % self.refresh == 0:
            self.take()
