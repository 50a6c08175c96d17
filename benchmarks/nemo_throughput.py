"""NeMo's side of recipe_throughput.py, run by a Python that has NeMo; it needs nothing of this package.

python benchmarks/nemo_throughput.py train MODEL.yaml CORPUS EPOCHS OUT.json
python benchmarks/nemo_throughput.py step MODEL.yaml SHAPE REPEATS OUT.json
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

BATCH_SIZE = 32


def config(path, corpus=None):
    model = yaml.safe_load(Path(path).read_text())
    labels = model["labels"]
    blocks = [
        {"stride": [1], "dilation": [1], "repeat": 1, "dropout": 0.0, "separable": False, **block}
        for stanza in model["encoder"]["jasper"]
        for block in [{k: v for k, v in stanza.items() if k != "copies"}] * stanza.get("copies", 1)
    ]
    for block in blocks:
        for key in ("kernel", "stride", "dilation"):
            block[key] = block[key] if isinstance(block[key], list) else [block[key]]
    filters = blocks[-1]["filters"]
    preprocessor = {**model["preprocessor"], "normalize": "per_feature"}
    cfg = {
        "sample_rate": 16000,
        "labels": labels,
        "preprocessor": {"_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", **preprocessor},
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            **{"feat_in": 64, "activation": "relu", "conv_mask": True, "jasper": blocks},
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            **{"feat_in": filters, "num_classes": len(labels), "vocabulary": labels},
        },
        "optim": {"name": "novograd", "lr": 0.05, "betas": [0.95, 0.25], "weight_decay": 0.001},
    }
    if corpus is not None:
        common = {"sample_rate": 16000, "labels": labels, "batch_size": BATCH_SIZE, "num_workers": 0}
        for name, split, shuffle in (("train_ds", "train", True), ("validation_ds", "dev", False)):
            cfg[name] = {"manifest_filepath": str(Path(corpus) / f"{split}.json"), "shuffle": shuffle, **common}
    return OmegaConf.create(cfg)


class Rate(pl.Callback):
    """Seconds and utterances of the training, validation left out: as the recipe's own counts them."""

    seconds, utterances, since = 0.0, 0, None

    def stop(self, *_):
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None

    def on_train_epoch_start(self, *_):
        self.since = time.perf_counter()

    on_validation_start = on_train_epoch_end = stop

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.utterances += len(batch[0])


def train(model, corpus, epochs, out):
    rate = Rate()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=int(epochs),
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            callbacks=[rate],
        )
        trainer.fit(EncDecCTCModel(config(model, corpus), trainer=trainer))
    Path(out).write_text(json.dumps({"utterances/s": rate.utterances / rate.seconds}))


def step(model, shape, repeats, out):
    network = EncDecCTCModel(config(model)).train()
    shape = json.loads(shape)
    x = torch.randn(shape)
    lens, targets = torch.full((shape[0],), shape[2]), torch.randint(0, 28, (shape[0], 60))
    times = []
    for _ in range(int(repeats) + 1):
        start = time.perf_counter()
        network.zero_grad()
        log_probs, out_lens, _ = network(processed_signal=x, processed_signal_length=lens)
        loss = network.loss(
            log_probs=log_probs, targets=targets, input_lengths=out_lens, target_lengths=torch.full((shape[0],), 60)
        )
        loss.backward()
        times.append(time.perf_counter() - start)
    Path(out).write_text(json.dumps({"seconds": statistics.median(times[1:])}))


if __name__ == "__main__":
    {"train": train, "step": step}[sys.argv[1]](*sys.argv[2:])
