"""A tiny run that averages its weights: what the tests of `optim.ema` fit."""

import copy

import lightning.pytorch as pl
import torch
from tiny_fit import Net, block, loader, trainer

DECAY = 0.5


class Watched(Net):
    """Notes the weights after each step and those that each validation sees."""

    def __init__(self, optim):
        torch.manual_seed(0)
        super().__init__(optim)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.after_steps, self.validated, self.tested = [], [], []
        self.save_in_validation = None

    def training_step(self, batch, batch_idx):
        self.count += 1
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args):
        self.after_steps.append(copy.deepcopy(self.layer.weight.data))

    def validation_step(self, batch, batch_idx):
        self.validated.append(copy.deepcopy(self.layer.weight.data))
        if self.save_in_validation and self.trainer.global_step == 6:
            self.trainer.save_checkpoint(self.save_in_validation)

    def test_step(self, batch, batch_idx):
        self.tested.append(copy.deepcopy(self.layer.weight.data))


def watched(ema=DECAY, **changes):
    return Watched(block(**({} if ema is None else {"ema": ema}), sched=None, **changes))


def fit(net, ckpt_path=None, package=pl, **options):
    run = trainer(package, **{"max_epochs": 2, "num_sanity_val_steps": 0, **options})
    # all batches alike: a loader that is no stateful one begins anew where a run is resumed in an epoch
    batches = torch.utils.data.DataLoader([torch.tensor([1.0, 2.0, 4.0])] * 8, batch_size=2)
    run.fit(net, batches, loader(2), ckpt_path=ckpt_path)
    return run


def average_of(weights, decay=DECAY):
    average = weights[0].clone()
    for weight in weights[1:]:
        average.lerp_(weight, 1 - decay)
    return average
