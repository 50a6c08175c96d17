"""Train a Jasper or QuartzNet speech model: ``python recipes/asr/train.py data=fsdd optim.lr=0.02``.

Everything of the run goes to Hydra's run folder: the config, the log, metrics.csv, TensorBoard events, checkpoints,
curves.png and results.json. ``conf/asr.yaml`` lists what can be set. With ``--plan`` nothing is trained: it prints how
the global batch is split, the learning rate, the steps, and the memory of the optimizer's state.
"""

import hydra
from omegaconf import DictConfig

from lightning_novograd.recipes.asr.training.plan import describe_run
from lightning_novograd.recipes.asr.training.run import run
from lightning_novograd.recipes.common.command import job, plan_by, say_plan, start


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="asr")
def main(cfg: DictConfig) -> float | None:
    """Train, test, write the results.

    Returns:
        The dev WER, for a sweeper that optimizes; None where there is no dev set.
    """
    return job(cfg, run, "dev_wer")


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="asr")
def show_plan(cfg: DictConfig) -> None:
    """Print what the run would be."""
    say_plan(cfg, describe_run)


def plan() -> None:
    """`show_plan` by the command line."""
    plan_by(show_plan)


if __name__ == "__main__":
    start(main, plan)
