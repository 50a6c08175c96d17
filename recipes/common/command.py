"""The command of a recipe around its run: Hydra's folder, a plan instead, what is said of mistakes, and the end."""

import gc
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig

import lightning_novograd.conf
from lightning_novograd.errors import ConfigError, LightningNovoGradError, closest
from lightning_novograd.recipes.common.allocator import keep_freed_memory
from lightning_novograd.recipes.common.console import fail, one_line, outlive_readers, set_up_console, stop
from lightning_novograd.recipes.common.folder import claim_folder, release_folder

log = logging.getLogger(__name__)

PLAN = "--plan"
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


class JobFailed(CompactHydraException):
    """What ends one job of a sweep, which Hydra says without a stack trace, after the other jobs."""


def job(cfg: DictConfig, run: Callable[[DictConfig, Path], dict[str, Any]], metric: str) -> float | None:
    """A run in Hydra's folder, whatever it comes to.

    Args:
        cfg: the composed config.
        run: what trains and measures, given the config and the folder.
        metric: of the results, the one to return.
    """
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        claim_folder(run_dir, cfg.get("resume_from"), cfg.get("resume"))
    except ConfigError as error:  # whose log is another run's
        raise (JobFailed if in_sweep else SystemExit)(one_line(error)) from None
    try:
        set_up_console()
        keep_freed_memory()
        return run(cfg, run_dir)[metric]
    except SystemExit as end:
        stop(end, run_dir)
    except Exception as error:
        if in_sweep and isinstance(error, LightningNovoGradError):
            log.error("%s", one_line(error))
            raise JobFailed(one_line(error)) from None
        # what a user did wrong is said in one line; a stack trace would only hide it
        fail(error, run_dir)
    finally:
        release_folder(run_dir)


def say_plan(cfg: DictConfig, describe: Callable[[DictConfig], str]) -> None:
    """Print the plan of a run, or what is wrong with it in one line."""
    try:
        print(describe(cfg))
    except LightningNovoGradError as error:
        problem = one_line(error)
        raise (JobFailed if HydraConfig.get().mode == RunMode.MULTIRUN else SystemExit)(problem) from None


def plan_by(show: Callable[[], None]) -> None:
    """Have Hydra show a plan by the command line, ``--plan`` in it, with nothing left where it would write."""
    command = [argument for argument in sys.argv if argument != PLAN]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [*command, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", *QUIET]
        show()


def nearest(error: BaseException | None) -> str | None:
    """What was most likely meant where Hydra found no such group or option."""
    conf = Path(lightning_novograd.conf.__path__[0])
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").partition("/")
        options = (path.relative_to(conf / group).with_suffix("") for path in (conf / group).rglob("*.yaml"))
        best = closest(option, (path.as_posix() for path in options))
        return best and f"{group}={best}"
    if isinstance(error, ConfigCompositionException):
        key = re.match(r"Could not override '([^']+)'", str(error))
        return key and closest(key[1], {path.parent.name for path in conf.glob("*/*.yaml")})
    return None


def leave() -> None:
    """End the process group, and with it gloo's worker threads, while the interpreter is whole.

    A worker thread that is late in dropping its tensors aborts an interpreter that has begun to exit; see
    docs/gloo_exit.md. Lightning ends only NCCL's groups.
    """
    gc.collect()  # DDP's wrapper sits in a reference cycle and holds the group, whose destructor joins the threads
    dist.barrier()
    dist.destroy_process_group()
    if any(name.startswith("pt_gloo") for name in thread_names()):  # FSDP2: a cache of torch's keeps the group for ever
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def thread_names() -> list[str]:
    """Of this process' threads, where the system lists them."""
    return [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]


def start(train: Callable[[], Any], plan: Callable[[], None]) -> None:
    """The command, from its arguments to the end of the process group."""
    outlive_readers()
    try:
        plan() if PLAN in sys.argv else train()
    except SystemExit as end:
        if best := nearest(end.__context__):  # Hydra has said what is wrong
            print(f"Did you mean {best}?", file=sys.stderr)
        raise
    if dist.is_initialized() and dist.get_backend() == "gloo":
        leave()
