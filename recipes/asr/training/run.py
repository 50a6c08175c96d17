"""One training run, from a composed config to ``results.json``."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig

from lightning_novograd.commands.output import whole_file
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.labels import write_labels
from lightning_novograd.recipes.asr.training.callbacks import CurveRecorder, NonFiniteGuard, ProgressLog, UtteranceRate
from lightning_novograd.recipes.asr.training.freezing import freeze
from lightning_novograd.recipes.asr.training.labels import check_resumed, with_labels
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.results import (
    batch_of_step,
    describe_plan,
    measure,
    measured_weights,
    report,
)
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches, published_results
from lightning_novograd.recipes.asr.training.sharding import ShardedCTCModule
from lightning_novograd.recipes.asr.training.stopping import build_early_stopping, why_stopped
from lightning_novograd.recipes.asr.weights.fine_tuning import start_from
from lightning_novograd.recipes.asr.weights.source import load
from lightning_novograd.recipes.common.batches.memory import count_parameters
from lightning_novograd.recipes.common.batches.optim import planned_optim
from lightning_novograd.recipes.common.checkpoints.kept import build_checkpoints
from lightning_novograd.recipes.common.console import FILE_ONLY, shows_bar
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.engines.sharding import FSDP2
from lightning_novograd.recipes.common.faults.ending import ended_together
from lightning_novograd.recipes.common.folder import claimed_folder, save_config
from lightning_novograd.recipes.common.restart.signals import INBOX, listening
from lightning_novograd.recipes.common.restart.start import Start
from lightning_novograd.recipes.common.trainer import build_trainer, watch

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
        DataError: a manifest or its audio cannot be used, or the checkpoint of `resume_from`.
        DivergenceError: loss, gradients or weights are NaN or infinite.
        Stopped: a signal has asked for it.
    """
    started = time.perf_counter()
    settings = RunSettings.read(cfg, "")
    with listening(INBOX), claimed_folder(run_dir, settings.resume_from, settings.resume):
        return _run(cfg, settings, run_dir, started)


def _run(cfg: DictConfig, settings: RunSettings, run_dir: Path, started: float) -> dict[str, Any]:
    # before any manifest is read; and Lightning's own message would be a stack trace
    start = Start(settings, cfg, run_dir)
    data_config = DataConfig.from_mapping(settings.data)
    plan = plan_batches(settings, data_config.loading.batch_size)
    seconds = data_config.loading.batch_seconds
    log.info("%s", describe_plan(plan, seconds))
    optim, lr = planned_optim(settings, plan)
    log.info("%s", lr)
    begins_from = settings.init_from if start.path is None else None
    trained = None if begins_from is None else load(begins_from)
    model_config = with_labels(settings.model, data_config, start.path, start.checkpoint, trained)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    kind = ShardedCTCModule if settings.trainer.get("strategy") == FSDP2 else CTCModule
    module = kind(model_config, optim, num_samples=settings.num_samples)
    data_config.check_given()
    if trained is not None:
        start_from(module.model, trained, str(begins_from))
    if settings.freeze:
        freeze(module, settings.freeze)
    if start.path is not None and start.checkpoint is not None:
        check_resumed(start.path, start.checkpoint, module)
    start.compare(GlobalBatch.planned(plan, seconds), "utt_per_s")
    data = SpeechDataModule(
        data_config,
        module.alphabet,
        samples_to_frames=module.model.output_lengths,
        sample_rate=module.model.config.preprocessor.sample_rate,
        seed=settings.seed,
        batch_size=plan.per_device_batch_size,
        last=settings.large_batch.last,
        reduction=module.reduction,
    )
    rate, curves = UtteranceRate(), CurveRecorder(run_dir / "curves.png")
    checkpoints = build_checkpoints(settings, run_dir, "dev_wer")
    guard = NonFiniteGuard(settings.nonfinite.action, settings.nonfinite.max_consecutive)
    module.guard = guard
    bar = shows_bar(settings.trainer.get("enable_progress_bar") is not False)
    progress = ProgressLog(rate, settings.console.interval, extra={FILE_ONLY: bar})
    callbacks, heartbeat, memory = watch(start, [rate, curves, guard, progress], checkpoints)
    stopping = None
    if settings.early_stopping.patience is not None:
        stopping = build_early_stopping(settings.early_stopping)
        callbacks.append(stopping)
    trainer = build_trainer(settings, plan, run_dir, callbacks)
    # from here on the folder changes: a command that is refused leaves the run in it as it was
    save_config(run_dir, cfg)
    if trainer.is_global_zero and model_config is not settings.model:
        write_labels(run_dir / "labels.txt", module.alphabet.labels)
    start.set_aside()
    with ended_together(trainer, heartbeat, settings.watchdog.timeout, run_dir):
        trainer.fit(module, data, ckpt_path=start.path and str(start.path), weights_only=True)
        measured = measure(trainer, module, data, measured_weights(trainer, settings, checkpoints, run_dir))

    results: dict[str, Any] = {
        **measured,
        "epochs": trainer.current_epoch,
        "optimizer_steps": trainer.global_step,
        **batch_of_step(plan, seconds),
        "utt_per_s": round(rate.mean, 2),
        "wall_s": round(time.perf_counter() - started, 2),
        "peak_memory_mb": memory.stages,
        "model_parameters": count_parameters(module.model),
        "optimizer": settings.optim["name"],
        **published_results(settings),
    }
    if stopping is not None and (reason := why_stopped(stopping)):
        results["stopped_early"] = reason
    if guard.skipped:
        results["skipped_steps"] = guard.skipped
    results |= start.of_training
    if trainer.is_global_zero:
        with whole_file(run_dir / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n")
        report(results, run_dir, trained=start.length is None)
    return results
