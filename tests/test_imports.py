"""Which module may import which: data flows one way, and only the top knows Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "lightning_novograd"
MODULES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))

# Lower layers first; a module imports only from its own layer and those before
LAYERS = [
    {"_version", "errors", "log"},
    {"optim", "arguments", "batch_plan", "closed_form_lr", "phased_lr", "schedules", "lr_scheduler"}
    | {"exponential_schedule", "openseq2seq_schedules", "torch_schedulers", "plotting"},
    {"registry"},
    {"construct", "plain"},
    {"optim_block"},
    {"config"},
    {"factory"},
    {"hparams", "resume", "run_length", "step_count", "describe", "schedule_picture", "convert_checkpoint"},
    {"module", "callbacks"},
    {"integrations", "__init__", "__main__"},
]
MAY_IMPORT_LIGHTNING = {"module", "callbacks", "integrations"}


def unit(module: str) -> str:
    """A file at the top, or a subpackage as a whole."""
    return module.split("/")[0]


def imports(module: str) -> set[str]:
    """Absolute names of all that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: relative import in line {node.lineno}"
            found |= {node.module or ""}
            if node.module == "lightning_novograd":
                found |= {f"lightning_novograd.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if unit(module) in layer)


def test_every_module_has_a_layer():
    assert {unit(module) for module in MODULES} <= set.union(*LAYERS)


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) != "__init__"])
def test_imports_point_downwards(module):
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "lightning_novograd" and len(parts) > 1 and parts[1] in set.union(*LAYERS):
            assert layer_of(parts[1]) <= layer_of(module), f"{module}.py imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) not in MAY_IMPORT_LIGHTNING])
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
    import lightning_novograd

    for name in lightning_novograd.__all__:
        assert getattr(lightning_novograd, name) is not None
    assert set(lightning_novograd.__all__) <= set(dir(lightning_novograd))
    with pytest.raises(AttributeError, match="no attribute 'NovaGrad'"):
        _ = lightning_novograd.NovaGrad
