"""Train a small Transformer on Python's documentation: ``python recipes/language/train.py optim=adamw``.

Everything of the run goes to Hydra's run folder, as with the speech recipe: the config, the log, metrics.csv,
TensorBoard events, checkpoints, curves.png and results.json. ``conf/language.yaml`` lists what can be set. With
``--plan`` nothing is trained: it prints how the global batch is split, the learning rate, the steps, and the memory
of the optimizer's state.
"""

from functools import partial

import hydra
from omegaconf import DictConfig

from lightning_novograd.recipes.common.command import job, plan_by, say_plan, start
from lightning_novograd.recipes.common.tasks.plan import describe_run
from lightning_novograd.recipes.common.tasks.run import run
from lightning_novograd.recipes.language.module import LANGUAGE


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="language")
def main(cfg: DictConfig) -> float | None:
    """Train, test, write the results.

    Returns:
        The dev set's bits per character, for a sweeper that optimizes; None where it is left out.
    """
    return job(cfg, partial(run, LANGUAGE), LANGUAGE.metric)


@hydra.main(version_base="1.3", config_path="pkg://lightning_novograd.conf", config_name="language")
def show_plan(cfg: DictConfig) -> None:
    """Print what the run would be."""
    say_plan(cfg, partial(describe_run, LANGUAGE))


if __name__ == "__main__":
    start(main, partial(plan_by, show_plan))
