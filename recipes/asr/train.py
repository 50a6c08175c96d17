"""Train a Jasper or QuartzNet speech model: ``python recipes/asr/train.py data=fsdd optim.lr=0.02``.

Everything of the run goes to Hydra's run folder: the config, the log, metrics.csv, TensorBoard events, checkpoints,
curves.png and results.json. ``conf/asr.yaml`` lists what can be set.
"""

import atexit
import os
import sys
from pathlib import Path

import hydra
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.asr.training.run import run


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="asr")
def main(cfg: DictConfig) -> None:
    """Train, test, write the results."""
    try:
        run(cfg, Path(HydraConfig.get().runtime.output_dir))
    except LightningNovoGradError as error:
        # what a user did wrong is said in one line; a stack trace would only hide it
        sys.exit(f"{type(error).__name__}: {error}")


def leave() -> None:
    """End a rank of a run over gloo at once.

    The interpreter's own exit aborts now and then on a busy machine ("terminate called without an active
    exception"), which a launcher would take for a failed run.
    """
    dist.barrier()
    dist.destroy_process_group()
    atexit._run_exitfuncs()  # what loggers and others still have to do
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
    if dist.is_initialized() and dist.get_backend() == "gloo":
        leave()
