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
        verbose=False,
        check_on_train_epoch_end=False,
        log_rank_zero_only=True,
    )


def why_stopped(callback: EarlyStopping) -> str | None:
    """Why it has ended the training, in words; None if it has not."""
    if callback.wait_count < callback.patience:
        return None
    return (
        f"stopped early: {callback.monitor} has not fallen by more than {abs(callback.min_delta):g} in "
        f"{callback.patience} validations; the best is {float(callback.best_score):.4f}"
    )
