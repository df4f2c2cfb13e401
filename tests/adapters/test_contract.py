"""The contract of every member: one table of what holds, to which tolerance, and what is refused, and why.

Each cell of member, dtype and architecture is trained for three AdamW steps on a tiny real model; what is saved is read
back by two fresh processes, one with our import and one that has only PEFT. Errors are relative to the largest entry.

`benchmarks/adapters_contract.py` runs this file on SmolLM2 (``STABLERANK_CONTRACT``), a member at a time
(``STABLERANK_CONTRACT_MEMBERS``), and keeps what it found.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from safetensors.torch import load_file

from stablerank.adapters.export import export_lora
from stablerank.adapters.layer import SpectralLinear
from stablerank.adapters.prepare import NEEDS_DATA, prepare_adapter
from stablerank.adapters.specs import AdapterSpec
from stablerank.adapters.variants.polar import stiefel_parameters
from stablerank.optimisers.landing import Landing, attach_landing

LOW_RANK = {"r": 4, "alpha": 6}
MEMBERS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", **LOW_RANK},
    "rslora": {"kind": "rslora", **LOW_RANK},
    "dora": {"kind": "dora", **LOW_RANK},
    "eva": {"kind": "eva", **LOW_RANK},
    "pissa": {"kind": "pissa", **LOW_RANK},
    "milora": {"kind": "milora", **LOW_RANK},
    "geora": {"kind": "geora", **LOW_RANK},
    "olora": {"kind": "olora", **LOW_RANK},
    "corda": {"kind": "corda", **LOW_RANK},
    "polar": {"kind": "polar", **LOW_RANK},
    "polar-diagonal": {"kind": "polar", "theta": "diagonal", **LOW_RANK},
    "polar-identity": {"kind": "polar", "theta": "identity", **LOW_RANK},
    "sinelora": {"kind": "sinelora", "omega": 50, **LOW_RANK},
    "bitfit": {"kind": "bitfit"},
    "bitfit-added": {"kind": "bitfit", "biases": "added"},
    "sparse": {"kind": "sparse", "rank": 4},
    "full": {"kind": "full"},
}
if chosen := os.environ.get("STABLERANK_CONTRACT_MEMBERS"):
    MEMBERS = {name: MEMBERS[name] for name in chosen.split(",")}
IN_PLACE = ("bitfit", "bitfit-added", "sparse", "full")
PEFTS_OWN = ("lora", "rslora", "dora", "eva")
MODEL = os.environ.get("STABLERANK_CONTRACT")
ARCHITECTURES = (MODEL,) if MODEL else ("llama", "qwen3", "gpt_neox")
RATE = 1e-4 if MODEL else 5e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Holds:
    """The largest error allowed, by dtype."""

    fp32: float
    bf16: float


@dataclass(frozen=True)
class Refuses:
    """What the refusal must say."""

    reason: str


EXACT = Holds(0, 0)
Cell = Holds | Refuses
NO_ADAPTER = Refuses("trains the model itself")
NO_BIASES = {
    **{("bitfit", architecture): "has no bias" for architecture in ("llama", "qwen3", MODEL)},
    ("bitfit-added", "gpt_neox"): "existing",
}
"""Cells that do not exist, and what `prepare_adapter` says."""

TABLE: dict[str, Callable[[str], Cell]] = {
    "policy at the start is the untouched model": lambda member: EXACT,
    "reference at the start is the untouched model": lambda member: NO_ADAPTER if member in IN_PLACE else EXACT,
    "switched off after training it is the untouched model": lambda m: NO_ADAPTER if m in IN_PLACE else EXACT,
    "switched on again it is the trained one": lambda member: NO_ADAPTER if member in IN_PLACE else EXACT,
    "gradients flow where they should and only there": lambda member: EXACT,
    "frozen parameters stay as they were": lambda member: EXACT,
    "merged equals unmerged": lambda m: NO_ADAPTER if m in IN_PLACE else Holds(2e-5, 2.0),
    "unmerged again the base is the old one": lambda m: NO_ADAPTER if m in IN_PLACE else EXACT,
    "the optimiser's state resumes": lambda member: EXACT,
    "a fresh process reloads it": lambda member: Holds(2e-5, 0.05),
    "stock PEFT reloads the native folder": lambda m: (
        Refuses("stablerank: this is no plain LoRA") if m not in (*IN_PLACE, *PEFTS_OWN) else Holds(2e-5, 0.05)
    ),
    "stock PEFT loads the plain export": lambda m: (
        Refuses("sine") if m == "sinelora" else NO_ADAPTER if m in IN_PLACE else Holds(2e-5, 0.05)
    ),
}


@dataclass
class Case:
    """One trained cell and the error (or the refusal) of each property."""

    member: str
    dtype: str
    architecture: str
    found: dict[str, float | str] = field(default_factory=dict)
    logits: torch.Tensor | None = None

    @property
    def name(self) -> str:
        return f"{self.member}-{self.dtype}-{self.architecture}"

    @property
    def in_place(self) -> bool:
        return self.member in IN_PLACE


CASES = [
    Case(member, dtype, architecture)
    for member, dtype, architecture in product(MEMBERS, DTYPES, ARCHITECTURES)
    if (member, architecture) not in NO_BIASES
]


@pytest.fixture(scope="module")
def table(load: Any, base_folder: Any, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every cell, trained and measured."""
    work = tmp_path_factory.mktemp("contract")
    native, stock, export = {}, {}, {}
    for case in CASES:
        try:
            Runner(case, load, ids, work / case.name).run()
        except Exception as error:  # one broken cell must not hide the others
            case.found = {title: f"{type(error).__name__}: {error}" for title in TABLE} | case.found
            continue
        common = {"ids": ids.tolist(), "autocast": case.in_place and case.dtype == "bf16"}
        dtype = "float32" if case.in_place or case.dtype == "fp32" else "bfloat16"
        base = str(work / case.name / "native" if case.in_place else base_folder(case.architecture))
        adapter = None if case.in_place else str(work / case.name / "native")
        native[case.name] = stock[case.name] = {"base": base, "adapter": adapter, "dtype": dtype, **common}
        if (work / case.name / "export").exists():
            export[case.name] = {**native[case.name], "adapter": str(work / case.name / "export")}
    for title, cases, ours in (
        ("a fresh process reloads it", native, True),
        ("stock PEFT reloads the native folder", stock, False),
        ("stock PEFT loads the plain export", export, False),
    ):
        reload(title, cases, work, ours=ours)
    if out := os.environ.get("STABLERANK_CONTRACT_OUT"):
        Path(out).write_text(json.dumps([vars(case) | {"logits": None} for case in CASES]))
    return {case.name: case for case in CASES}


def reload(title: str, cases: dict[str, Any], work: Path, *, ours: bool) -> None:
    script, out = Path(__file__).with_name("reload.py"), work / f"{title}.safetensors"
    (work / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, str(script), str(work / "cases.json"), str(out), *(["--ours"] if ours else [])]
    subprocess.run(command, check=True, capture_output=True)
    logits, refusals = load_file(out), json.loads(Path(f"{out}.json").read_text())
    for case in CASES:
        if case.name in logits:
            case.found[title] = largest(logits[case.name], case.logits)
        elif case.name in refusals:
            case.found[title] = refusals[case.name]


def largest(one: torch.Tensor, other: torch.Tensor | None) -> float:
    """The largest difference, relative to the largest entry; 0 only where they are equal bit by bit."""
    assert other is not None
    one, other = one.float(), other.float()
    return 0.0 if torch.equal(one, other) else ((one - other).abs().max() / other.abs().max()).item()


class Runner:
    """Takes one cell through its life."""

    def __init__(self, case: Case, load: Any, ids: torch.Tensor, folder: Path) -> None:
        self.case, self.ids, self.folder = case, ids, folder
        self.spec = TypeAdapter(AdapterSpec).validate_python(MEMBERS[case.member])
        dtype = torch.float32 if case.in_place else DTYPES[case.dtype]
        self.load = lambda: load(case.architecture, dtype)

    def run(self) -> None:
        untouched, found = self.load(), self.case.found
        model = self.prepared()
        names = list(TABLE)
        found[names[0]] = largest(self.logits(model), self.logits(untouched))
        found[names[1]] = self.off(model, untouched)
        base = {name: value.clone() for name, value in model.state_dict().items()}
        found[names[4]] = self.gradients(model)
        self.train(model, steps=3)
        found[names[5]] = self.moved_though_frozen(model, base)
        self.case.logits = self.logits(model)
        found[names[2]] = self.off(model, untouched)
        found[names[3]] = NO_ADAPTER.reason if self.case.in_place else largest(self.logits(model), self.case.logits)
        model.save_pretrained(self.folder / "native")
        found[names[11]] = self.export(model)
        found[names[6]], found[names[7]] = self.merge(model, untouched)
        found[names[8]] = self.resume()

    def prepared(self) -> Any:
        torch.manual_seed(11)
        calibration = [{"input_ids": row[None]} for row in self.ids.repeat(4, 1)]
        extra = {"calibration": calibration} if self.spec.kind in NEEDS_DATA else {}
        return prepare_adapter(self.load(), self.spec, **extra)

    def logits(self, model: Any) -> torch.Tensor:
        autocast = self.case.in_place and self.case.dtype == "bf16"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model.eval()(self.ids).logits.float()

    def off(self, model: Any, untouched: Any) -> float | str:
        if self.case.in_place:
            return NO_ADAPTER.reason
        with model.disable_adapter():
            return largest(self.logits(model), self.logits(untouched))

    def loss(self, model: Any) -> torch.Tensor:
        autocast = self.case.in_place and self.case.dtype == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model.train()(self.ids, labels=self.ids).loss

    def gradients(self, model: Any) -> float:
        """How many parameters have a gradient and should not, or lack one; zero factors may have a zero gradient."""
        self.loss(model).backward()
        wrong = [
            name
            for name, value in model.named_parameters()
            if (value.grad is not None) != expected(self.case.member, name)
        ]
        model.zero_grad()
        return float(len(wrong))

    def train(self, model: Any, steps: int, optimiser: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
        optimiser = optimiser or self.optimiser(model)
        for _ in range(steps):
            self.loss(model).backward()
            optimiser.step()
            optimiser.zero_grad()
        return optimiser

    def optimiser(self, model: Any) -> torch.optim.Optimizer:
        trained = [value for value in model.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        if self.spec.kind == "polar":
            settings = Landing(penalty=self.spec.penalty)
            attach_landing(optimiser, list(stiefel_parameters(model).values()), settings)
        return optimiser

    def moved_though_frozen(self, model: Any, before: dict[str, torch.Tensor]) -> float:
        # A tied head has a second name.
        trained = {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
        after = model.state_dict()
        return max((largest(after[name], before[name]) for name in after if name not in trained), default=0.0)

    def export(self, model: Any) -> float | str:
        if self.case.in_place:
            return NO_ADAPTER.reason
        try:
            export_lora(model, self.folder / "export")
        except Exception as error:
            return str(error)
        return float("nan")  # the fresh process says

    def merge(self, model: Any, untouched: Any) -> tuple[float | str, float | str]:
        if self.case.in_place:
            return NO_ADAPTER.reason, NO_ADAPTER.reason
        before = self.logits(model)
        weights = {name: layer.get_base_layer().weight.clone() for name, layer in layers(model)}
        for _ in range(5):
            model.merge_adapter()
            merged = {name: layer.get_base_layer().weight.clone() for name, layer in layers(model)}
            error = largest(self.logits(model), before)
            model.unmerge_adapter()
        drift = max(largest(layer.get_base_layer().weight, weights[name]) for name, layer in layers(model))
        return (error if self.case.dtype == "fp32" else self.rounding(merged)), drift

    def rounding(self, merged: dict[str, torch.Tensor]) -> float:
        """The error of a bf16 merge over that of an fp32 merge rounded once."""
        twin = PeftModel.from_pretrained(self.load().float(), self.folder / "native")
        twin.merge_adapter()
        exact = {name: layer.get_base_layer().weight for name, layer in layers(twin)}
        once = sum((exact[name].bfloat16().float() - exact[name]).square().sum() for name in exact).sqrt()
        ours = sum((merged[name].float() - exact[name]).square().sum() for name in exact).sqrt()
        return (ours / once).item()

    def resume(self) -> float:
        """Two steps, saved, two more after loading, beside four in one go."""
        whole = self.prepared()
        self.train(whole, 4)
        first = self.prepared()
        state = self.train(first, 2).state_dict()
        second = self.prepared()
        if self.case.in_place:
            second.load_state_dict(first.state_dict())
        else:
            first.save_pretrained(self.folder / "halfway")
            second.load_adapter(str(self.folder / "halfway"), "default", is_trainable=True)
        optimiser = self.optimiser(second)
        optimiser.load_state_dict(state)
        self.train(second, 2, optimiser)
        after = whole.state_dict()
        return max(largest(value, after[name]) for name, value in second.state_dict().items())


def layers(model: Any) -> Iterator[tuple[str, SpectralLinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, SpectralLinear))


def expected(member: str, name: str) -> bool:
    """Whether a parameter of this name trains."""
    if member == "full":
        return True
    if member.startswith("bitfit"):
        return name.endswith(".bias")
    if member == "sparse":
        return any(part in name for part in ("_proj.weight", "query_key_value.weight", "dense")) and "bias" not in name
    return any(f"lora_{factor}.default" in name for factor in ("A", "B", "S", "magnitude_vector"))


@pytest.mark.parametrize("name", [case.name for case in CASES])
@pytest.mark.parametrize("title", TABLE)
def test_the_contract(table: dict[str, Case], name: str, title: str) -> None:
    case = table[name]
    cell, found = TABLE[title](case.member), case.found[title]
    if isinstance(cell, Refuses):
        assert isinstance(found, str) and re.search(cell.reason, found), found
    else:
        assert not isinstance(found, str), found
        assert found <= (cell.fp32 if case.dtype == "fp32" else cell.bf16)


@pytest.mark.parametrize(
    ("member", "architecture"), [cell for cell in NO_BIASES if cell[0] in MEMBERS and cell[1] in ARCHITECTURES]
)
def test_a_cell_that_does_not_exist_says_why(load: Any, member: str, architecture: str) -> None:
    spec = TypeAdapter(AdapterSpec).validate_python(MEMBERS[member])
    with pytest.raises(Exception, match=NO_BIASES[member, architecture]):
        prepare_adapter(load(architecture), spec)


def test_training_moves_every_member(table: dict[str, Case], load: Any, ids: torch.Tensor) -> None:
    for case in CASES:
        with torch.no_grad():
            assert largest(load(case.architecture)(ids).logits, case.logits) > RATE, case.name


@pytest.mark.parametrize("member", [name for name in MEMBERS if not MODEL or (name, MODEL) not in NO_BIASES])
def test_gradient_checkpointing_changes_no_gradient(load: Any, ids: torch.Tensor, member: str) -> None:
    architecture = MODEL or ("gpt_neox" if member == "bitfit" else "qwen3")
    runner = Runner(Case(member, "fp32", architecture), load, ids, Path())
    model = runner.prepared()
    runner.train(model, 1)  # off the start, where factors of zero hide gradients
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        runner.loss(model).backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert max(largest(gradients[1][name], gradients[0][name]) for name in gradients[0]) < 1e-5
