"""LightningCLI with the optimizers and schedules of this package."""

from spirals import Net

from lightning_novograd.training.cli import OptimCLI

if __name__ == "__main__":
    defaults = {"max_epochs": 30, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    OptimCLI(Net, trainer_defaults=defaults, save_config_callback=None)
