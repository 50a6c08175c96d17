"""Old import paths, of the time before modules had folders: each still gives its module, with a DeprecationWarning.

`lightning_novograd/__init__.py` installs the finder, so this imports nothing of ours and no torch.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from types import CodeType, ModuleType

_PACKAGE = __name__.rpartition(".")[0]

# Below lightning_novograd. config, lr_scheduler, optim.larc, optim.novograd and optim.checkpoint need no line: they are
# folders now, which export what the module exported.
MOVED = {
    "arguments": "config.arguments",
    "batch_plan": "large_batch.plan",
    "callbacks": "training.callbacks",
    "closed_form_lr": "lr_scheduler.base",
    "construct": "config.build",
    "convert_checkpoint": "commands.convert_checkpoint",
    "describe": "commands.describe",
    "exponential_schedule": "lr_scheduler.deeplearningexamples",
    "factory": "config",
    "hparams": "training.checkpoint.hparams",
    "integrations.lightning_cli": "training.cli",
    "module": "training",
    "openseq2seq_schedules": "lr_scheduler.openseq2seq",
    "optim.cpu_kernel": "optim.kernels.cpu.build",
    "optim.cuda_kernels": "optim.kernels.cuda.novograd",
    "optim.device_tables": "optim.kernels.cuda.tables",
    "optim.fused_cpu": "optim.novograd.cpu",
    "optim.fused_cuda": "optim.novograd.cuda",
    "optim.larc_maths": "optim.larc.factors",
    "optim.larc_options": "optim.larc.options",
    "optim.layer_norms": "optim.norms",
    "optim.validation": "optim.novograd.validation",
    "optim_block": "config.schema",
    "phased_lr": "lr_scheduler.phases",
    "plain": "config.data",
    "plotting": "lr_scheduler.plot",
    "recipes.asr.audio": "recipes.asr.data.audio",
    "recipes.asr.blocks": "recipes.asr.model.blocks",
    "recipes.asr.callbacks": "recipes.asr.training.callbacks",
    "recipes.asr.corpora": "recipes.asr.data.corpora",
    "recipes.asr.corpora.espeak_digits": "recipes.asr.data.corpora.espeak.digits",
    "recipes.asr.corpora.espeak_worker": "recipes.asr.data.corpora.espeak.worker",
    "recipes.asr.ctc_module": "recipes.asr.training.module",
    "recipes.asr.dataset": "recipes.asr.data.dataset",
    "recipes.asr.decode": "recipes.asr.text.decode",
    "recipes.asr.features": "recipes.asr.model.features",
    "recipes.asr.loader": "recipes.common.data.loader",
    "recipes.asr.manifest": "recipes.asr.data.manifest",
    "recipes.asr.metrics": "recipes.asr.text.metrics",
    "recipes.asr.nemo_checkpoint": "recipes.asr.weights.nemo",
    "recipes.asr.run": "recipes.asr.training.run",
    "recipes.asr.sampler": "recipes.common.data.sampler",
    "recipes.asr.settings": "recipes.asr.training.settings",
    "recipes.asr.spec_augment": "recipes.asr.model.spec_augment",
    "recipes.asr.trained": "recipes.asr.recognition.trained_run",
    "resume": "training.checkpoint.resume",
    "run_length": "training.run_length",
    "schedule_picture": "commands.plot_schedule",
    "step_count": "training.amp",
}


class MovedFinder:
    """Finds the new module under an old name; modules inside a package that moved have moved with it."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old name, None for all others."""
        new = _new_name(fullname)
        spec = find_spec(new) if new else None
        if new is None or spec is None or spec.origin is None:
            return None
        loader, folder = _MovedLoader(fullname, new, spec.origin), spec.submodule_search_locations
        return spec_from_file_location(fullname, spec.origin, loader=loader, submodule_search_locations=folder)


def _new_name(fullname: str) -> str | None:
    if not fullname.startswith(f"{_PACKAGE}."):
        return None
    old = fullname.removeprefix(f"{_PACKAGE}.")
    package, _, module = old.rpartition(".")
    if old in MOVED:
        return f"{_PACKAGE}.{MOVED[old]}"
    return f"{_PACKAGE}.{MOVED[package]}.{module}" if package in MOVED else None


class _MovedLoader(SourceFileLoader):
    """Puts the new module under the old name too: one module, so that its classes are the same under both."""

    def __init__(self, old: str, new: str, path: str) -> None:
        super().__init__(old, path)
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in the place of this empty one, as a module may do by itself."""
        self._warn()
        sys.modules[self.name] = import_module(self.new)

    def get_code(self, fullname: str) -> CodeType | None:
        """The code, for `python -m`."""
        self._warn()
        return super().get_code(fullname)

    def _warn(self) -> None:
        # stacklevel: the frames of the import system do not count
        message = f"{self.name} is {self.new} now; the old path will be gone in 1.0"
        warnings.warn(message, DeprecationWarning, stacklevel=3)


def install() -> None:
    """Make the old paths importable.

    First in line: a folder of the old layout in which a checkout has left nothing but `__pycache__` would be imported
    as a namespace package, and the modules of a package that moved would be imported a second time.
    """
    if MovedFinder not in sys.meta_path:
        sys.meta_path.insert(0, MovedFinder)
