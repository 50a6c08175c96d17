"""Two ranks over gloo: together they see what one process sees, and Lightning does not deal the batches again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import speech_files

from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

# Lightning starts rank 1 by running the script once more.
SCRIPT = """
import json, sys
from pathlib import Path
import lightning.pytorch as pl
import torch
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet

class Listener(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.heard, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        self.heard.append(batch.texts)
        return self.weight * batch.wave_BS.mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch.texts)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

folder, accumulate, batch_size = Path(sys.argv[1]), *map(int, sys.argv[2:])
cfg = {"name": "manifest", "train": f"{folder}/train.json", "dev": f"{folder}/dev.json", "batch_size": batch_size}
listener = Listener()
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=True,
    accumulate_grad_batches=accumulate, max_epochs=2, num_sanity_val_steps=0, default_root_dir=folder,
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
alphabet = Alphabet(" abcdefghijklmnopqrstuvwxyz'")
trainer.fit(listener, SpeechDataModule(DataConfig.from_mapping(cfg), alphabet, seed=3))
(folder / f"heard_{trainer.global_rank}.json").write_text(json.dumps([listener.heard, listener.evaluated]))
sys.path.append(TESTS)
from ranks import leave
leave()
"""


@pytest.mark.slow
def test_two_ranks_see_what_one_process_sees(tmp_path):
    train = speech_files.write_corpus(tmp_path, "train", 19)
    dev = speech_files.write_corpus(tmp_path, "dev", 7)
    (tmp_path / "script.py").write_text(SCRIPT.replace("TESTS", repr(str(Path(speech_files.__file__).parent))))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "2", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"heard_{rank}.json").read_text()) for rank in (0, 1)]

    cfg = {"name": "manifest", "train": str(train), "dev": str(dev), "batch_size": 8}
    one = SpeechDataModule(DataConfig.from_mapping(cfg), Alphabet(speech_files.LABELS), seed=3)
    one.setup("fit")
    loader = one.train_dataloader()
    expected = [sorted(batch.texts) for _ in range(2) for batch in loader]

    heard = list(zip(*(heard for heard, _ in ranks), strict=True))
    steps = [sorted(text for micro in heard[i : i + 2] for batch in micro for text in batch) for i in range(0, 8, 2)]
    assert len(expected) == 4
    assert steps == expected

    evaluated = [text for _, batches in ranks for batch in batches for text in batch]
    assert sorted(evaluated) == sorted(2 * [f"zero {digit}" for digit in speech_files.DIGITS[:7]])
    assert len({len(batches) for _, batches in ranks}) == 1
