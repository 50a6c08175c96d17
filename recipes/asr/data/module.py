"""The data of a run: a corpus by name, and batches of it for every rank."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from torch import Tensor

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora import get_corpus
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset, collate
from lightning_novograd.recipes.asr.data.loader import BatchLoader, ResumableLoader
from lightning_novograd.recipes.asr.data.manifest import read_manifest
from lightning_novograd.recipes.asr.data.sampler import EvalBatchSampler, GlobalBatchSampler
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler

log = logging.getLogger(__name__)


class SpeechDataModule(LightningDataModule):
    """Batches of a corpus for training, development and test, the same ones however many ranks share them.

    `prepare_data` makes the corpus on one process of each node; `setup` reads and checks the manifests. Ranks,
    world size and accumulation are the trainer's; without a trainer it is one process and no accumulation.
    `trainer.use_distributed_sampler` may have either value.

    Args:
        config: the `data` group.
        alphabet: of the model.
        samples_to_frames: output frames of the model for numbers of samples (`JasperCTC.output_lengths`), to find
            audio that is too short for its text; None skips that.
        sample_rate: Hz, of the model.
        seed: of batches and augmentation.
        batch_size: instead of `config.loading.batch_size`, for a global batch that was solved.

    Raises:
        DataError: in `setup`, for anything in a manifest or its audio that cannot be used.

    Example:
        >>> config = DataConfig.from_mapping({"name": "manifest", "train": "train.json", "dev": "dev.json"})
        >>> data = SpeechDataModule(config, Alphabet("ab "), batch_size=16)
        >>> data.batch_size
        16
    """

    def __init__(
        self,
        config: DataConfig,
        alphabet: Alphabet,
        *,
        samples_to_frames: Callable[[Tensor], Tensor] | None = None,
        sample_rate: int = 16000,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.alphabet, self.sample_rate, self.seed = config, alphabet, sample_rate, seed
        self.samples_to_frames = samples_to_frames
        self.batch_size = batch_size or config.loading.batch_size
        self.eval_batch_size = config.loading.eval_batch_size or self.batch_size
        self.datasets: dict[str, SpeechDataset] = {}
        self._loaders: list[BatchLoader] = []

    def _manifests(self) -> dict[str, Path]:
        corpus = get_corpus(self.config.name)
        manifests = corpus.prepare(self.config.corpus, Path(self.config.loading.cache_dir).expanduser())
        return {split: path for split, path in vars(manifests).items() if path is not None}

    @property
    def has_test_set(self) -> bool:
        """Whether the corpus has one (your own manifests need not)."""
        return "test" in self._manifests()

    def prepare_data(self) -> None:
        """Make the corpus if it is not there."""
        self._manifests()

    def setup(self, stage: str | None = None) -> None:
        """Read the sets that `stage` needs."""
        needed = {"fit": ("train", "dev"), "validate": ("dev",), "test": ("test",)}.get(
            str(stage), ("train", "dev", "test")
        )
        manifests = self._manifests()
        for split in needed:
            if split in manifests and split not in self.datasets:
                self.datasets[split] = self._read(split, manifests[split])

    def _read(self, split: str, manifest: Path) -> SpeechDataset:
        loading = self.config.loading
        speeds = self.config.augment.factors if split == "train" else (1.0,)
        frames = self.samples_to_frames
        fastest = max(speeds)
        utterances = read_manifest(
            manifest,
            self.alphabet,
            sample_rate=self.sample_rate,
            # fast audio is short audio
            samples_to_frames=None if frames is None else lambda samples: frames((samples.double() / fastest).long()),
            min_duration=loading.min_duration,
            max_duration=loading.max_duration,
            downmix=loading.downmix,
        )
        hours = sum(u.duration for u in utterances) / 3600
        log.info("%s set: %d utterances, %.2f h, from %s", split, len(utterances), hours, manifest)
        return SpeechDataset(
            utterances,
            self.alphabet,
            self.sample_rate,
            downmix=loading.downmix,
            cache=loading.cache_audio,
            speeds=speeds,
            seed=self.seed,
            keep_nonfinite=split == "train",  # NonFiniteGuard refuses or skips the optimizer step
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; the position survives a checkpoint."""
        dataset = self.datasets["train"]
        accumulate, shuffle = 1, True
        if (trainer := self.trainer) is not None:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
            for callback in callbacks:
                if isinstance(callback, GradientAccumulationScheduler | BatchRampScheduler):
                    problem = f"{type(callback).__name__} would change the global batch size"
                    raise ConfigError("trainer.callbacks", problem)
            accumulate = trainer.accumulate_grad_batches
            shuffle = not trainer.overfit_batches  # type: ignore[attr-defined]  # set by the Trainer's set-up
        sampler = GlobalBatchSampler(
            dataset.durations, self.batch_size, accumulate=accumulate, seed=self.seed, shuffle=shuffle, **self._place()
        )
        loader = ResumableLoader(dataset, sampler, collate, **self._loading())
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> BatchLoader:
        """The development set, every utterance once."""
        return self._eval_loader("dev")

    def test_dataloader(self) -> BatchLoader:
        """The test set, every utterance once.

        Raises:
            ConfigError: the corpus has none.
        """
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> BatchLoader:
        if split not in self.datasets:
            raise ConfigError(f"data.{split}", f"the corpus {self.config.name} has no {split} set")
        dataset = self.datasets[split]
        sampler = EvalBatchSampler(dataset.durations, self.eval_batch_size, **self._place())
        loader = BatchLoader(dataset, sampler, collate, **self._loading())
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str | None = None) -> None:
        """Let go of all worker processes."""
        while self._loaders:
            self._loaders.pop().close()

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"world_size": 1, "rank": 0}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}

    def _loading(self) -> dict[str, Any]:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.config.loading.num_workers, "pin_memory": cuda}
