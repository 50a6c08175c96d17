"""Train a Jasper or QuartzNet speech model: ``python recipes/asr/train.py data=fsdd optim.lr=0.02``.

Everything of the run goes to Hydra's run folder: the config, the log, metrics.csv, TensorBoard events, checkpoints,
curves.png and results.json. ``conf/asr.yaml`` lists what can be set.
"""

import gc
import re
import sys
from pathlib import Path

import hydra
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig

import lightning_novograd.conf
from lightning_novograd.errors import LightningNovoGradError, closest
from lightning_novograd.recipes.asr.training.run import run


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="asr")
def main(cfg: DictConfig) -> None:
    """Train, test, write the results."""
    try:
        run(cfg, Path(HydraConfig.get().runtime.output_dir))
    except LightningNovoGradError as error:
        # what a user did wrong is said in one line; a stack trace would only hide it
        sys.exit(f"{type(error).__name__}: {error}")


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


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if best := nearest(end.__context__):  # Hydra has said what is wrong
            print(f"Did you mean {best}?", file=sys.stderr)
        raise
    if dist.is_initialized() and dist.get_backend() == "gloo":
        leave()
