"""A Hydra app whose `optim` comes from the presets of this package."""

import hydra
import lightning.pytorch as pl
from omegaconf import DictConfig
from spirals import Net

from lightning_novograd import attach_optimizers


@hydra.main(version_base="1.3", config_path=".", config_name="hydra_app")
def main(cfg: DictConfig) -> None:
    """Train with what the config says."""
    net = attach_optimizers(Net(), cfg.optim)
    pl.Trainer(**cfg.trainer).fit(net)


if __name__ == "__main__":
    main()
