"""Which room may import which: data flows one way, and only the Lightning side knows Lightning."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import lightning_novograd
from lightning_novograd import registry

PACKAGE = ROOT / "lightning_novograd"
MODULES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))

GROUND = {"_version", "errors", "log"}
# A room, and the rooms that it imports from; the longest name that fits a module is its room
ROOMS = {
    "_moved": set(),
    "_version": set(),
    "errors": set(),
    "log": set(),
    "ranges": GROUND,
    "registry": GROUND | {"ranges"},
    "optim/kernels": {"errors", "log"},
    "optim": GROUND | {"ranges", "registry", "optim/kernels"},
    "lr_scheduler": GROUND | {"ranges", "registry"},
    "large_batch": GROUND,
    "config": GROUND | {"ranges", "registry", "optim", "lr_scheduler", "large_batch"},
    "training": GROUND | {"registry", "optim", "lr_scheduler", "config", "large_batch"},
    "integrations": GROUND | {"registry", "optim", "config"},
    "commands": GROUND | {"registry", "optim", "optim/kernels", "lr_scheduler", "config"},
    "__main__": GROUND | {"registry", "commands"},
    "__init__": GROUND | {"_moved", "registry", "optim", "lr_scheduler", "config", "large_batch", "training"},
}
MAY_IMPORT_LIGHTNING = {"training", "integrations"}


def room_of(module: str) -> str:
    """The room of `optim/norms` or `lightning_novograd.optim.norms`."""
    path = module.removeprefix("lightning_novograd").lstrip(".").replace(".", "/") or "__init__"
    return max((room for room in ROOMS if f"{path}/".startswith(f"{room}/")), key=len, default="")


def imports(module: str) -> set[str]:
    """Absolute names of all that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # a package that only hands out its modules is not what is imported
            found |= names if len(ours(names)) == len(names) else names | {node.module or ""}
    return found


def ours(names: set[str]) -> set[str]:
    """Modules and packages of ours among imported names, as paths; those too that the package itself hands out."""
    local = {name.removeprefix("lightning_novograd.") for name in names if name.startswith("lightning_novograd.")}
    paths = {lightning_novograd._MODULES.get(name, name).replace(".", "/") for name in local}
    return {path for path in paths if (PACKAGE / f"{path}.py").exists() or (PACKAGE / path / "__init__.py").exists()}


def name_of(path: str) -> str:
    """`optim` for both `optim` and `optim/__init__`."""
    return path.removesuffix("/__init__")


def test_every_module_has_a_room():
    assert not [module for module in MODULES if not room_of(module)]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    room = room_of(module)
    for name in ours(imports(module)):
        assert room_of(name) in ROOMS[room] | {room}, f"{module}.py imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_reaches_for_a_room_through_the_package(module):
    # `import lightning_novograd; lightning_novograd.training...` is an import that no other test here sees
    assert "lightning_novograd" not in imports(module) or room_of(module) == "__init__"


def test_the_registry_imports_by_name_only_what_registers_itself():
    assert registry._BUILT_IN == ("lightning_novograd.optim", "lightning_novograd.lr_scheduler")


def test_no_room_imports_itself_through_others():
    def above(room, on_the_way=()):
        assert room not in on_the_way, " -> ".join((*on_the_way, room))
        for below in ROOMS[room]:
            above(below, (*on_the_way, room))

    for room in ROOMS:
        above(room)


def test_no_module_imports_itself_through_others():
    graph = {name_of(module): {name_of(name) for name in ours(imports(module))} for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in MAY_IMPORT_LIGHTNING])
def test_lightning_is_imported_at_the_top_only(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ("lightning", "pytorch_lightning")]


@pytest.mark.parametrize("module", MODULES)
def test_the_plugin_imports_no_recipe(module):
    assert not [name for name in imports(module) if "recipes" in name.split(".")]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import lightning_novograd", ["torch", "lightning", "pytorch_lightning"]),
        ("from lightning_novograd import OptimMixin, NovoGrad, build_optimizers", ["lightning", "pytorch_lightning"]),
        ("from lightning_novograd import *", ["lightning", "pytorch_lightning", "matplotlib"]),
    ],
)
def test_importing_stays_light(statement, absent):
    code = f"import sys\n{statement}\nprint([name for name in {absent} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(sys.prefix))
    assert run.stdout.strip() == "[]"


def test_public_names_exist_and_are_listed():
    for name in lightning_novograd.__all__:
        assert getattr(lightning_novograd, name) is not None
    assert set(lightning_novograd.__all__) <= set(dir(lightning_novograd))
    with pytest.raises(AttributeError, match="no attribute 'NovaGrad'"):
        _ = lightning_novograd.NovaGrad
