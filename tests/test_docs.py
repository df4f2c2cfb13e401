"""The documents tell the truth: links, code, commands, recipes, and the defaults and columns they list."""

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from stablerank.adapters.specs import AdapterSpec, LoraSpec
from stablerank.evaluation.specs import EvaluationSpec, LossEvaluationSpec
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.specs import MathVerifySpec, MixtureSpec, PythonSpec, SingleRewardSpec
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.tasks.pairs import ArithmeticPairs, PairsSpec
from stablerank.tasks.specs import ArithmeticSpec, FileSpec, SeveralSpec
from stablerank.tasks.texts import ArithmeticTexts, FileTexts, PairTexts
from stablerank.training.alarms import AlarmsSpec
from stablerank.training.language_model import recipe as language_model
from stablerank.training.overfitting import OverfittingSpec
from stablerank.training.preference import recipe as preference
from stablerank.training.recipe import LOSS_SETTINGS, Recipe
from stablerank.training.sections import SECTIONS, GeometrySpec, LossGeometrySpec, ModelSpec, OptimiserSpec

ROOT = Path(__file__).parents[1]
UNIONS = (LoraSpec, ArithmeticSpec, FileSpec, SeveralSpec, MathVerifySpec, PythonSpec, MixtureSpec)
RECIPE_TABLES = (
    *(Recipe, ModelSpec, *UNIONS, CreditSpec, OptimiserSpec, LOSS_SETTINGS, GeometrySpec),
    *(AlarmsSpec, EvaluationSpec),
)
"""What the tables of docs/recipe.md are about, in their order."""
TEXTS, PAIRS = (ArithmeticTexts, FileTexts, PairTexts), (ArithmeticPairs, PairsSpec)
OBJECTIVE_TABLES = (
    LossEvaluationSpec,
    LossGeometrySpec,
    OverfittingSpec,
    *TEXTS,
    language_model.LOSS_SETTINGS,
    *PAIRS,
    preference.LOSS_SETTINGS,
)
"""The same of docs/objectives.md."""


def load_check_docs():
    spec = importlib.util.spec_from_file_location("check_docs", ROOT / "scripts" / "check_docs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_docs"] = module
    spec.loader.exec_module(module)
    return module


check_docs = load_check_docs()


def found_in(root, readme, *, run=False):
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        (root / name).write_text("nothing\n")
    (root / "README.md").write_text(readme)
    return [str(problem) for problem in check_docs.problems(root, run)]


def test_documents_of_this_repository_hold():
    assert [str(problem) for problem in check_docs.problems(ROOT, run=False)] == []


def test_missing_documents_are_named(tmp_path):
    messages = [str(problem) for problem in check_docs.problems(tmp_path, run=False)]
    assert messages == [f"{name}:1: is missing" for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def test_what_holds_is_silent(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").touch()
    text = """# A title, really
[self](#a-title-really) [file](recipes/a.yaml) [web](https://example.org/x) `stablerank zoo list`

```bash
pip install stablerank trackio
stablerank train recipes/a.yaml seed=1 \\
    --dry-run  # stablerank is great
```
`stablerank ...` and `stablerank VERB`
"""
    assert found_in(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("one\n[x](gone.md)\n", 2, "no such file"),
        ("one\n\n![x](gone.png)\n", 3, "no such file"),
        ('<img src="gone.png">\n', 1, "no such file"),
        ("[x](../secret.md)\n", 1, "leads out of the repository"),
        ("# Here\n\n[x](#there)\n", 3, "no heading #there"),
        ("```python\nx = 1\ny = = 2\n```\n", 3, "does not compile"),
        ("a `stablerank bake RUN` b\n", 1, "no verb 'bake'"),
        ("a `stablerank zoo burn` b\n", 1, "`stablerank zoo` has no verb 'burn'"),
        ("```bash\n# fine\nstablerank train x.yaml \\\n  --fast\n```\n", 3, "`stablerank train` has no option --fast"),
        ("```bash\naccelerate launch -m stablerank trian x.yaml\n```\n", 2, "no verb 'trian'"),
        ("start from recipes/gone.yaml\n", 1, "no recipe recipes/gone.yaml"),
    ],
)
def test_what_does_not_hold_is_named_with_its_line(tmp_path, text, line, words):
    (message,) = found_in(tmp_path, text)
    assert message.startswith(f"README.md:{line}: ")
    assert words in message


def test_only_marked_blocks_run(tmp_path):
    text = "```python\nraise SystemExit(3)\n```\n\n<!-- run -->\n```python\nassert 1 == 2, 'unequal'\n```\n"
    assert found_in(tmp_path, text, run=True) == ["README.md:7: the Python block fails: AssertionError: unequal"]
    assert found_in(tmp_path, text.replace("1 == 2", "1 == 1"), run=True) == []


def tables_of(page):
    """Field and default of each row, a dictionary a table."""
    parts = re.split(r"^\| field \| default .*$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1:]
    return [dict(re.findall(r"^\| `([^`]+)` \| `?([^`|]+?)`? \|", part, flags=re.MULTILINE)) for part in parts]


def defaults_of(spec):
    if isinstance(spec, dict):
        return spec
    fields = {name: field.get_default(call_default_factory=True) for name, field in spec.model_fields.items()}
    if spec is Recipe:
        return {name: fields[name] for name in SECTIONS if name in fields}
    is_chosen = spec in (*UNIONS, *TEXTS, *PAIRS) and spec is not LoraSpec
    return {**fields, "kind": PydanticUndefined} if is_chosen else fields


def as_plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("page", "index", "spec"),
    [
        *(("recipe.md", *table) for table in enumerate(RECIPE_TABLES)),
        *(("objectives.md", *table) for table in enumerate(OBJECTIVE_TABLES)),
    ],
)
def test_recipe_documents_list_every_field_with_its_default(page, index, spec):
    listed, true = tables_of(page)[index], defaults_of(spec)
    assert list(listed) == list(true)
    if spec is Recipe:  # its sections have defaults of their own, each in its table
        return
    wanted = {name: "required" if value is PydanticUndefined else as_plain(value) for name, value in true.items()}
    assert {name: yaml.safe_load(default) for name, default in listed.items()} == wanted


def test_recipe_document_lists_what_each_adapter_adds():
    section = (ROOT / "docs" / "recipe.md").read_text().partition("| kind | its own fields |")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (.*?)\|$", section, re.MULTILINE))
    others = [spec for spec in get_args(get_args(AdapterSpec)[0]) if spec is not LoraSpec]
    assert list(rows) == [spec.model_fields["kind"].default for spec in others]
    for spec in others:
        listed = yaml.safe_load("{" + ", ".join(re.findall(r"`(.*?)`", rows[spec.model_fields["kind"].default])) + "}")
        true = {name: "required" if value is PydanticUndefined else value for name, value in defaults_of(spec).items()}
        shared = defaults_of(LoraSpec)
        assert listed == {name: v for name, v in true.items() if name != "kind" and (name, v) not in shared.items()}


def test_recipe_document_lists_what_each_reward_has():
    section = (ROOT / "docs" / "recipe.md").read_text().partition("| kind | its own fields | page |")[2]
    rows = dict(re.findall(r"^\| (\w+) \| (.*?) \|", section.partition("\n\n")[0], re.MULTILINE))
    others = [spec for spec in get_args(get_args(SingleRewardSpec)[0]) if spec not in (MathVerifySpec, PythonSpec)]
    assert list(rows) == [get_args(spec.model_fields["kind"].annotation)[0] for spec in others]
    for spec, row in zip(others, rows.values(), strict=True):
        listed = yaml.safe_load("{" + ", ".join(re.findall(r"`(.*?)`", row)) + "}")
        fields = {name: field for name, field in spec.model_fields.items() if name != "kind"}
        assert listed == {n: "required" if f.is_required() else f.get_default() for n, f in fields.items()}


def test_run_folder_document_lists_every_geometry_column():
    text = (ROOT / "docs" / "run-folder.md").read_text()
    section = text.partition("### geometry")[2].partition("###")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert listed == [field.name for field in dataclasses.fields(GeometryRow)]
