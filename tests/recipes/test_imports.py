"""Which room of the speech recipe may import which, and which recipe: data and model know nothing of each other.

The examples run.
"""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

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
# a recipe, and those that it imports from
RECIPES = {
    "asr": set(),
    "deep_linear": set(),
    "common": {"asr"},
    "image": {"asr", "common"},
    "language": {"asr", "common"},
}
# what tasks other than speech have to do with speech: the run that they share, and what is typed in a config
OF_EVERY_TASK = {"section", "train", "training", "data/loader", "data/sampler", "data/steps"}
OTHERS = sorted(
    path.relative_to(RECIPE.parent).with_suffix("").as_posix()
    for name in RECIPES.keys() - {"asr"}
    for path in (RECIPE.parent / name).rglob("*.py")
)


def room_of(module: str) -> str:
    return module.split("/")[0]


def names(module: str, folder: Path = RECIPE) -> set[str]:
    """Absolute names of all that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((folder / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def imports(module: str) -> set[str]:
    """Modules of the recipe that a module imports; a package is its __init__."""
    paths = {name.removeprefix(PREFIX).replace(".", "/") for name in names(module) if name.startswith(PREFIX)}
    found = {path for path in paths if path in MODULES}
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


def test_every_recipe_has_its_directions():
    assert {path.parent.name for path in RECIPE.parent.glob("*/__init__.py")} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_import_what_they_share(recipe):
    modules = [module for module in (*OTHERS, *(f"asr/{m}" for m in MODULES)) if module.split("/")[0] == recipe]
    assert len(modules) > 3
    for module in modules:
        of_recipes = [name.split(".")[2:] for name in names(module, RECIPE.parent) if name.startswith(PREFIX[:-4])]
        for other, *path in of_recipes:
            assert other in RECIPES[recipe] | {recipe}, f"{module}.py imports {other}"
            if other == "asr" and recipe != "asr":
                assert any("/".join(path).startswith(room) for room in OF_EVERY_TASK), f"{module}.py imports {path}"


@pytest.mark.slow
def test_data_that_is_read_is_not_imported():
    """Packages bring pandas and scipy; a file of theirs is all that is wanted."""
    code = "import sys, lightning_novograd.recipes.image.train as train; train.IMAGE.data(name='digits').sets(0)"
    code += "; print([name for name in ('mlxtend', 'sklearn', 'pandas') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", [m for m in (*OTHERS, *(f"asr/{m}" for m in MODULES)) if not m.endswith(("__init__", "worker"))]
)
def test_examples_run(module):
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(PREFIX[:-4] + module.replace("/", ".")), optionflags=flags)
    assert result.failed == 0
