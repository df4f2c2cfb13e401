"""The house of the design: floors, light imports, packaging, and limits of size."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FLOORS = (
    {"errors"},
    {"spectral", "runs", "tasks", "zoo"},
    {"adapters", "optimisers", "diagnoses", "dynamics"},
    {"probes", "compression"},
    {"rewards"},
    {"evaluation"},
    {"training", "testbeds"},
    {"studies"},
    {"reports"},
    {"cli"},
)
FACADES = (
    "",
    "__main__",
    "choosing",
    "compressing",
    "conditioning",
    "diagnosing",
    "facade",
    "evaluating",
    "inspecting",
    "measuring",
    "peft",
    "rewardbenching",
    "scoring",
)
TOP_ROOM = "cli"
"""`__init__.py`, `__main__.py` and the facades of the package belong to the top floor."""
HEAVY = ("torch", "transformers", "trl", "peft", "ray", "vllm", "datasets", "matplotlib")
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((SOURCE / "stablerank").rglob("*.py"))}


def imported(path):
    """Modules of ours that a file imports, wherever in the file the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
    return {name for name in found if name.split(".")[0] == "stablerank"}


IMPORTS = {name: imported(path) for name, path in FILES.items()}


def room(module):
    second = module.split(".")[1] if "." in module else ""
    return TOP_ROOM if second in FACADES else second


def test_every_room_has_a_floor():
    assert {room(name) for name in FILES} <= set(FLOOR_OF)
    assert len(FILES) > 50, "the walk found the sources"


def test_every_import_of_ours_is_a_module_of_ours():
    assert {target for targets in IMPORTS.values() for target in targets} <= set(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_to_a_lower_floor_or_stay_at_home(module):
    here = room(module)
    wrong = [t for t in IMPORTS[module] if room(t) != here and FLOOR_OF[room(t)] >= FLOOR_OF[here]]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    # graphlib raises CycleError with the circle.
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(FILES)


def test_every_package_is_packed():
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    ours = {module_name(path) for path in (SOURCE / "stablerank").rglob("__init__.py")}
    assert ours <= set(packed)
    assert set(packed) - ours == {"stablerank.recipes"}
    assert {module.rpartition(".")[0] for module in FILES} - {""} <= set(packed), "every folder is a package"


def test_room_packages_import_nothing():
    """A room's `__init__.py` is its docstring, so that one module of a room does not load the others."""
    for name, path in FILES.items():
        if path.name == "__init__.py" and name not in ("stablerank", "stablerank.cli"):
            assert [type(node).__name__ for node in ast.parse(path.read_text()).body] == ["Expr"], name


@pytest.mark.parametrize("arguments", [None, ["--help"], ["train", "--help"], ["zoo", "list"]])
def test_light_start(arguments):
    run = "from stablerank.cli import main; sys.argv[1:] = arguments; main()" if arguments else "import stablerank"
    code = f"""
import sys
arguments = {arguments}
try:
    {run}
except SystemExit as ended:
    assert not ended.code
print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("module", FILES)
def test_house_limits(module):
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= 450
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 100] == []
