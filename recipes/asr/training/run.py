"""One training run, from a composed config to ``results.json``."""

import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch import loggers as pl_loggers
from omegaconf import DictConfig

from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.training.callbacks import BatchSeed, CurveRecorder, NonFiniteGuard, UtteranceRate
from lightning_novograd.recipes.asr.training.module import CTCModule, count_parameters
from lightning_novograd.recipes.asr.training.settings import LOGGERS, RunSettings, plan_batches
from lightning_novograd.recipes.asr.weights.checkpoint import read_checkpoint
from lightning_novograd.training.callbacks import LayerMonitor

log = logging.getLogger(__name__)


def run(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train, then measure the dev and the test set.

    Args:
        cfg: the composed ``conf/asr.yaml``.
        run_dir: folder for everything that the run writes.

    Returns:
        What ``results.json`` holds; error rates are fractions.

    Raises:
        ConfigError: a key of the config is unknown, misspelt or impossible.
        DataError: a manifest or its audio cannot be used.
    """
    started = time.perf_counter()
    settings = RunSettings.read(cfg, "")
    if settings.resume_from is not None and os.path.exists(settings.resume_from):
        # Lightning's own message is a stack trace that ends in torch's advice to run the file's code
        read_checkpoint(Path(settings.resume_from), map_location="meta")
    data_config = DataConfig.from_mapping(settings.data)
    plan = plan_batches(settings, data_config.loading.batch_size)
    log.info("%s", plan)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    module = CTCModule(settings.model, settings.optim, num_samples=settings.num_samples)
    data = SpeechDataModule(
        data_config,
        module.alphabet,
        samples_to_frames=module.model.output_lengths,
        sample_rate=module.model.config.preprocessor.sample_rate,
        seed=settings.seed,
        batch_size=plan.per_device_batch_size,
    )
    rate, curves = UtteranceRate(), CurveRecorder(run_dir / "curves.png")
    checkpoints = build_checkpoints(settings, run_dir)
    guard = NonFiniteGuard(settings.nonfinite.action, settings.nonfinite.max_consecutive)
    module.guard = guard
    callbacks: list[pl.Callback] = [BatchSeed(settings.seed), rate, curves, guard, *checkpoints]
    if settings.layer_monitor is not None:
        callbacks.append(LayerMonitor(settings.layer_monitor, run_dir))
    trainer = build_trainer(settings, plan, run_dir, callbacks)

    with warnings.catch_warnings():
        # Lightning looks when fit begins; the folder holds Hydra's files, never an earlier metrics.csv
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        trainer.fit(module, data, ckpt_path=settings.resume_from, weights_only=True)

    results: dict[str, Any] = {
        **measure(
            trainer, module, data, checkpoints[0].best_model_path if settings.checkpoint.test == "best" else None
        ),
        "epochs": trainer.current_epoch,
        "optimizer_steps": trainer.global_step,
        "global_batch_size": plan.global_batch_size,
        "utt_per_s": round(rate.mean, 2),
        "wall_s": round(time.perf_counter() - started, 2),
        "model_parameters": count_parameters(module.model),
        "optimizer": settings.optim["name"],
    }
    if trainer.is_global_zero:
        (run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        report(results, run_dir)
    return results


def measure(
    trainer: pl.Trainer, module: CTCModule, data: SpeechDataModule, checkpoint: str | None
) -> dict[str, float | None]:
    """Error rates of the dev and the test set; None for those of a test set that the corpus does not have.

    Args:
        trainer: after `fit`.
        module: with the weights of the last step.
        data: the corpus.
        checkpoint: weights to measure instead.
    """
    metrics: dict[str, float] = {}
    for evaluate in (trainer.validate, trainer.test) if data.has_test_set else (trainer.validate,):
        [measured] = evaluate(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
        metrics.update(measured)
    return {name: metrics.get(name) for name in ("dev_wer", "test_wer", "dev_cer", "test_cer")}


def build_checkpoints(settings: RunSettings, run_dir: Path) -> list[pl_callbacks.ModelCheckpoint]:
    """Top-k by dev WER and the last epoch's; then, if wanted, the newest inside an epoch."""
    folder = run_dir / "checkpoints"
    by_epoch = pl_callbacks.ModelCheckpoint(
        dirpath=folder,
        filename="epoch={epoch:03d}-dev_wer={dev_wer:.4f}",
        auto_insert_metric_name=False,
        monitor="dev_wer",
        mode="min",
        save_top_k=settings.checkpoint.save_top_k,
    )
    # not save_last=True, which copies the newest of the top k. It comes second: the best one's path travels in it
    last = pl_callbacks.ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True)
    if settings.checkpoint.every_n_steps is None:
        return [by_epoch, last]
    by_step = pl_callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step:07d}", every_n_train_steps=settings.checkpoint.every_n_steps, save_top_k=1
    )
    return [by_epoch, last, by_step]


def build_trainer(settings: RunSettings, plan: BatchPlan, run_dir: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The Trainer of the ``trainer`` block, with the plan's accumulation and the run's loggers."""
    loggers = build_loggers(settings, run_dir)
    if loggers:
        callbacks = [*callbacks, pl_callbacks.LearningRateMonitor(logging_interval="step")]
    return pl.Trainer(
        **{**settings.trainer, "accumulate_grad_batches": plan.accumulate_grad_batches},
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=run_dir,
        use_distributed_sampler=False,
    )


def build_loggers(settings: RunSettings, run_dir: Path) -> list[pl_loggers.Logger]:
    """The loggers of the ``logger`` block; all of them write into the run folder."""
    return [
        getattr(pl_loggers, LOGGERS[name])(
            **({"save_dir": run_dir, "name": "", "version": ""} | (arguments or {})),
        )
        for name, arguments in settings.logger.items()
    ]


def report(results: dict[str, Any], run_dir: Path) -> None:
    """Say the result in the last lines of the log."""
    log.info(
        "%d epochs, %d optimizer steps of %d utterances, %.1f utterances/s, %.0f s in all; see %s",
        results["epochs"],
        results["optimizer_steps"],
        results["global_batch_size"],
        results["utt_per_s"],
        results["wall_s"],
        run_dir,
    )
    for split in ("dev", "test"):
        wer, cer = results[f"{split}_wer"], results[f"{split}_cer"]
        if wer is None:
            continue
        log.info("%-4s WER %6.2f %%   CER %6.2f %%", split, 100 * wer, 100 * cer)
