"""Which room of the recipe may import which: data and model know nothing of each other. The examples run."""

import ast
import doctest
import importlib

import pytest
from conftest import ROOT

RECIPE = ROOT / "recipes" / "asr"
PREFIX = "lightning_novograd.recipes.asr."
MODULES = sorted(path.relative_to(RECIPE).with_suffix("").as_posix() for path in RECIPE.rglob("*.py"))

GROUND = {"section", "text"}
ROOMS = {
    "allocator": set(),
    "section": set(),
    "text": set(),
    "data": GROUND,
    "model": GROUND,
    "weights": GROUND | {"model"},
    "training": GROUND | {"data", "model", "weights"},
    "recognition": GROUND | {"data", "model", "weights", "training"},
    "arguments": GROUND | {"recognition"},
}
ENTRY_POINTS = {"train", "evaluate", "transcribe", "prepare", "export"}


def room_of(module: str) -> str:
    return module.split("/")[0]


def imports(module: str) -> set[str]:
    """Modules of the recipe that a module imports, inside functions too; a package is its __init__."""
    found = set()
    for node in ast.walk(ast.parse((RECIPE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        else:
            continue
        paths = {name.removeprefix(PREFIX).replace(".", "/") for name in names if name.startswith(PREFIX)}
        found |= {path for path in paths if path in MODULES}
        found |= {f"{path}/__init__" for path in paths if f"{path}/__init__" in MODULES}
    return found - {module}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_point_downwards(module):
    room = room_of(module)
    assert room in set(ROOMS) | ENTRY_POINTS, f"{module}.py is in no room"
    allowed = ROOMS.get(room, set(ROOMS)) | {room}
    for name in imports(module):
        assert room_of(name) in allowed, f"{module}.py imports {name}.py"


def test_there_is_no_circle():
    left = {module: imports(module) for module in MODULES}
    while bottom := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in bottom}
    assert not left, "these import each other"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith(("__init__", "worker"))])
def test_examples_run(module):
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(PREFIX + module.replace("/", ".")), optionflags=flags)
    assert result.failed == 0
