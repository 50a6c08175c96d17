"""Ends a training that does not get better."""

from lightning.pytorch.callbacks import EarlyStopping

from lightning_novograd.recipes.asr.training.settings import EarlyStoppingSettings


def build_early_stopping(settings: EarlyStoppingSettings) -> EarlyStopping:
    """Ends the training when what it watches has not fallen for `patience` validations, or is no number."""
    assert settings.patience is not None
    return EarlyStopping(
        settings.monitor,
        min_delta=settings.min_delta,
        patience=settings.patience,
        mode="min",
        verbose=True,  # says why it ended
        check_on_train_epoch_end=False,
        log_rank_zero_only=True,
    )
