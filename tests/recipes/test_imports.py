"""Which recipe may import which, and which of its rooms: what recipes share knows none of them.

The examples run.
"""

import ast
import doctest
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "recipes"
PREFIX = "lightning_novograd.recipes."
MODULES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/**/*.py"))

# a recipe, and those that it imports from
RECIPES = {
    "common": set(),
    "asr": {"common"},
    "deep_linear": set(),
    "image": {"common"},
    "language": {"common"},
}
# Of a recipe, a room and the rooms of the same recipe that it imports from; the longest name that fits a module is its
# room
GROUND = {"section", "metric", "way_on"}
READING = GROUND | {"data", "settings", "folder", "checkpoints"}
SHOWN = READING | {"batches", "callbacks"}
ROOMS = {
    "common": {
        "allocator": set(),
        "batch_norm": set(),
        "metric": set(),
        "section": set(),
        "way_on": set(),
        "data": set(),
        "settings": {"section", "data"},
        "folder": {"way_on"},
        "loggers": {"folder", "settings"},
        "checkpoints": GROUND | {"data", "settings", "folder"},
        "engines": {"batch_norm", "settings"},
        "batches": GROUND | {"data", "settings", "engines"},
        "callbacks": GROUND | {"checkpoints"},
        "restart": READING | {"callbacks", "results"},
        "faults/processes": set(),
        "faults/launch": {"folder"},
        "console": {"folder", "way_on", "restart", "faults/processes", "faults/launch"},
        "faults": {"data", "folder", "way_on", "restart", "console", "faults/processes", "faults/launch"},
        "results": READING,
        "trainer": SHOWN | {"console", "engines", "faults", "loggers", "restart"},
        "command": {"allocator", "console", "folder"},
        "tasks": SHOWN | {"console", "engines", "faults", "restart", "results", "trainer"},
    },
    "asr": {
        "text": set(),
        "data": {"text"},
        "model": {"text"},
        "weights": {"text", "model"},
        "training": {"text", "data", "model", "weights"},
        "recognition": {"text", "data", "model", "weights", "training"},
        "arguments": {"text", "recognition"},
    },
}
ENTRY_POINTS = {"train", "evaluate", "transcribe", "prepare", "export"}


def recipe_of(module: str) -> str:
    return module.split("/")[0]


def room_of(module: str) -> str:
    """Within its recipe; empty for none."""
    recipe, _, path = module.partition("/")
    return max((room for room in ROOMS.get(recipe, ()) if f"{path}/".startswith(f"{room}/")), key=len, default="")


def names(module: str) -> set[str]:
    """Absolute names of all that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def imports(module: str) -> set[str]:
    """Modules of the recipes that a module imports; a package is its __init__."""
    paths = {name.removeprefix(PREFIX).replace(".", "/") for name in names(module) if name.startswith(PREFIX)}
    found = {path for path in paths if path in MODULES}
    found |= {f"{path}/__init__" for path in paths if f"{path}/__init__" in MODULES}
    return found - {module}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m)])
def test_imports_point_downwards(module):
    recipe, room = recipe_of(module), room_of(module)
    for name in imports(module):
        if recipe_of(name) == recipe and name != f"{recipe}/__init__":
            assert room_of(name) in ROOMS[recipe][room] | {room}, f"{module}.py imports {name}.py"


@pytest.mark.parametrize("recipe", ROOMS)
def test_every_module_is_in_a_room(recipe):
    modules = {m for m in MODULES if recipe_of(m) == recipe and not room_of(m)}
    assert modules <= {f"{recipe}/{name}" for name in ("__init__", *ENTRY_POINTS)}


@pytest.mark.parametrize("recipe", ROOMS)
def test_rooms_are_above_each_other(recipe):
    left = dict(ROOMS[recipe])
    while bottom := {room for room, below in left.items() if not below & left.keys()}:
        left = {room: below for room, below in left.items() if room not in bottom}
    assert not left, "these import each other"


def test_there_is_no_circle():
    left = {module: imports(module) for module in MODULES}
    while bottom := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in bottom}
    assert not left, "these import each other"


def test_every_recipe_has_its_directions():
    assert {path.parent.name for path in FOLDER.glob("*/__init__.py")} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_import_what_they_share(recipe):
    modules = [module for module in MODULES if recipe_of(module) == recipe]
    assert len(modules) > 3
    for module in modules:
        for other in {name.split(".")[2] for name in names(module) if name.startswith(PREFIX)}:
            assert other in RECIPES[recipe] | {recipe}, f"{module}.py imports {other}"


@pytest.mark.slow
def test_data_that_is_read_is_not_imported():
    """Packages bring pandas and scipy; a file of theirs is all that is wanted."""
    code = "import sys, lightning_novograd.recipes.image.train as train; train.IMAGE.data(name='digits').sets(0)"
    code += "; print([name for name in ('mlxtend', 'sklearn', 'pandas') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith(("__init__", "worker"))])
def test_examples_run(module):
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(PREFIX + module.replace("/", ".")), optionflags=flags)
    assert result.failed == 0
