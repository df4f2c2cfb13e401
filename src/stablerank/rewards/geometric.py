"""The spectral spread of hidden states as a reward: stable rank, effective rank or participation ratio.

Legend: B rows of a chunk, L tokens of prompt and completion, D hidden size.

``st(H) = ||H||_F^2 / ||H||_2^2`` of the states after the final norm, uncentred, one row a token: SR-GRPO (arXiv
2512.02807, equation 1), where the states are those of the frozen reference. The other two functionals (spectral/
functionals.py) and centring are ablations. Tokens that count:

- ``window``: the first so many of prompt and completion together, padding aside (appendix H; 512 in the main numbers).
- ``scope``: of these ``all`` (appendix E, training) or those of the ``response`` (section 2.2, RewardBench). Tokens of
  the chat template and the beginning of the text belong to the prompt, the end token to the response.

A completion none of whose tokens lies in the window is unscorable (NaN, counted), be it empty or behind a long prompt;
one token that counts gives exactly 1, centred nothing. All three move with length, the stable rank down on most text
and up on the embedded student's, so watch lengths.

``of`` says whose states: the ``frozen`` reference's, which no training can bend; the ``policy``'s when it sampled,
which can raise its own reward by changing its states; or those of a ``snapshot`` of the policy, renewed every
``refresh`` steps. The KL reference is the same for all three.

What a spread that collapses may come from is logged beside it, as means over the batch (top_direction.py):
``sigma1_first_token`` and ``sigma1_special_tokens``, what the first token that counts and the tokenizer's special
tokens (template, beginning, end) hold of the leading direction of uncentred states; ``cut_by_window``, the share of
texts longer than the window.

Numerics: fp64 from the model's dtype, each row cut to its tokens and worked on alone, so that neither padding nor the
batch moves a bit beyond what they move in the states (`spectral.batched`). Cost O(L D min(L, D)) a row, on the device
of the pass; twice that for the two functionals that need every singular value. The frozen pass itself is the one that
serves the KL term.

Left out on purpose: other layers (a pass keeps the states after the final norm alone), functionals whose last singular
values are noise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.base_spec import RewardSpecBase
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.forwards import Needs, Reading, States, Which
from stablerank.rewards.rollout import Rollout
from stablerank.rewards.top_direction import leading_energy, share_of
from stablerank.spectral.batched import spectra_batched, stable_rank_batched
from stablerank.spectral.functionals import effective_rank, participation_ratio

Scope = Literal["all", "response"]
Functional = Literal["stable_rank", "effective_rank", "participation_ratio"]

_OF_ALL_VALUES = {"effective_rank": effective_rank, "participation_ratio": participation_ratio}


@dataclass(frozen=True)
class View:
    """Which states are looked at, and how."""

    scope: Scope = "all"
    window: int = 512
    center: bool = False

    @property
    def name(self) -> str:
        """Equal names, equal views."""
        return f"{self.scope}_{self.window}{'_centred' if self.center else ''}"

    def within(self, states: States) -> Tensor:
        """Tokens in the window, ``(B, L)``."""
        return states.attention_mask_BL & (states.attention_mask_BL.cumsum(1) <= self.window)

    def counted(self, states: States) -> Tensor:
        """Tokens that count, ``(B, L)``."""
        return self.within(states) if self.scope == "all" else self.within(states) & states.completion_mask_BL

    def is_unscorable(self, states: States) -> Tensor:
        """Rows ``(B,)`` without a completion token in the window."""
        return ~(self.within(states) & states.completion_mask_BL).any(1)


@dataclass(frozen=True)
class SpectrumReading:
    """A functional of each row's spectrum, ``(B,)`` float64; NaN where no completion token lies in the window."""

    functional: Functional = "stable_rank"
    view: View = View()

    @property
    def name(self) -> str:
        """Equal names, equal readings."""
        return f"{self.functional}_{self.view.name}"

    def __call__(self, states: States) -> Tensor:
        """Read one chunk."""
        counted_BL = self.view.counted(states)
        if self.functional == "stable_rank":
            rank_B = stable_rank_batched(states.hidden_BLD, counted_BL, center=self.view.center)
        else:
            values = spectra_batched(states.hidden_BLD, counted_BL, center=self.view.center)
            rank_B = torch.stack([_OF_ALL_VALUES[self.functional](values_K) for values_K in values])
        return rank_B.masked_fill(self.view.is_unscorable(states), math.nan)


@dataclass(frozen=True)
class OwnershipReading:
    """What the first token, or the tokens of ``special_ids``, hold of the leading direction, ``(B,)`` float64.

    ``view`` does not centre.
    """

    view: View
    special_ids: frozenset[int] | None = None
    """None: the first token that counts."""

    @property
    def name(self) -> str:
        """Equal names, equal readings of one tokenizer."""
        return f"sigma1_{'first' if self.special_ids is None else 'special'}_{self.view.name}"

    def __call__(self, states: States) -> Tensor:
        """Read one chunk."""
        counted_BL = self.view.counted(states)
        energy_BL = leading_energy(states.hidden_BLD, counted_BL)
        if self.special_ids is None:
            chosen_BL = counted_BL & (counted_BL.cumsum(1) == 1)
        else:
            chosen_BL = torch.isin(states.ids_BL, torch.tensor(sorted(self.special_ids), device=states.ids_BL.device))
        return share_of(energy_BL, chosen_BL).masked_fill(self.view.is_unscorable(states), math.nan)


class SpectrumReward(Reward):
    """A functional of the spectrum of hidden states (module header).

    Notes: ``unscorable`` completions that have tokens, but none in the window, or states that are not finite; and the
    three means of the module header, where they exist.
    """

    density = "trajectory"

    def __init__(
        self,
        functional: Functional = "stable_rank",
        view: View | None = None,
        of: Which = "frozen",
        refresh: int | None = None,
        special_ids: frozenset[int] = frozenset(),
    ) -> None:
        """``refresh`` optimiser steps between the snapshots of ``of="snapshot"``; None otherwise."""
        self.name, self.of = functional if of == "frozen" else f"{of}_{functional}", of
        self.reading = SpectrumReading(functional, view or View())
        self._owners = {} if self.reading.view.center else _owners(self.reading.view, special_ids)
        readings: dict[str, Reading] = {self.reading.name: self.reading}
        self.needs = _needs(of, readings | {owner.name: owner for owner in self._owners.values()}, refresh)

    def __call__(self, rollout: Rollout) -> Deposit:
        """Score every completion. Raises RewardError where the pass was not run."""
        readings, mask_NT = rollout.forward(self.of, self.name).readings, rollout.completion_mask_NT
        rank_N = readings[self.reading.name]
        shares = {note: float(readings[owner.name].nanmean()) for note, owner in self._owners.items()}
        shares["cut_by_window"] = self._cut_by_window(rollout)
        notes = {"unscorable": float((rank_N.isnan() & mask_NT.any(1)).sum())}
        notes |= {note: share for note, share in shares.items() if not math.isnan(share)}
        return trajectory_deposit(rank_N.tolist(), mask_NT, notes)

    def _cut_by_window(self, rollout: Rollout) -> float:
        if rollout.prompt_ids is None or not len(rollout):
            return math.nan
        texts = zip(rollout.prompt_ids, rollout.completion_ids, strict=True)
        return fmean(len(prompt) + len(ids) > self.reading.view.window for prompt, ids in texts)


def _owners(view: View, special_ids: frozenset[int]) -> dict[str, OwnershipReading]:
    return {
        "sigma1_first_token": OwnershipReading(view),
        "sigma1_special_tokens": OwnershipReading(view, special_ids),
    }


def _needs(of: Which, readings: Mapping[str, Reading], refresh: int | None) -> Needs:
    if of == "snapshot":
        return Needs(snapshot_readings=readings, refresh=refresh)
    return Needs(frozen_readings=readings) if of == "frozen" else Needs(policy_readings=readings)


class SpectrumSpec(RewardSpecBase):
    """The stable rank, or a rival, of the last hidden states over the text (SR-GRPO)."""

    kind: Literal["stable_rank"] = "stable_rank"
    functional: Functional = Field(default="stable_rank", description="what is made of the singular values")
    scope: Scope = Field(default="all", description="tokens that count: prompt and response, or the response alone")
    window: PositiveInt = Field(default=512, description="of these, the first so many of prompt and response together")
    center: bool = Field(default=False, description="subtract the mean state first")
    of: Which = Field(
        default="frozen", description="whose states: the reference's, the policy's when it sampled, or a snapshot's"
    )
    refresh: PositiveInt | None = Field(default=None, description="optimiser steps between snapshots of the policy")

    @model_validator(mode="after")
    def _snapshots_have_an_age(self) -> "SpectrumSpec":
        if (self.of == "snapshot") != (self.refresh is not None):
            raise ValueError(
                f"of={self.of} does not go with refresh={self.refresh}, the age of a snapshot; set refresh with "
                "of=snapshot and leave it out otherwise"
            )
        return self

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Reward:
        """The reward; nothing is loaded."""
        view = View(self.scope, self.window, self.center)
        return SpectrumReward(self.functional, view, self.of, self.refresh, frozenset(tokenizer.all_special_ids))
