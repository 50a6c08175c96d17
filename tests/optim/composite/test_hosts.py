"""What drives an optimizer drives a Composite: LR schedulers, Lightning, Fabric, finetuning callbacks."""

import copy
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import BaseFinetuning
from optim.composite.composites import SGD, AdamW, RMSprop, params_of
from optim.larc.larc_cases import assert_same, make_params, run
from torch.optim import lr_scheduler

from lightning_novograd.lr_scheduler import WarmupAnnealing
from lightning_novograd.optim import Composite, NovoGrad

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 0.5**step, lambda step: 0.9**step]),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_moves_each_group_from_its_own_lr(scheduler):
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.5), RMSprop(params[1:])])
    plain = SGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 0.001}])
    lrs = []
    for optimizer in (composite, plain):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # "lr_scheduler.step() before optimizer.step()"
            warnings.filterwarnings("ignore", message=".*epoch parameter in `scheduler.step")
            sched = SCHEDULERS[scheduler](optimizer)
            lrs.append([])
            for step in range(4):
                run(optimizer, params, 1, first=step)
                sched.step()
                lrs[-1].append([group["lr"] for group in optimizer.param_groups])
    assert lrs[0] == lrs[1]
    assert [group["lr"] for part in composite.optimizers for group in part.param_groups] == lrs[0][-1]


def test_fabric_drives_it():
    fabric = Fabric(accelerator="cpu", devices=1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    plain = copy.deepcopy(model)

    def build(module):
        return Composite([NovoGrad(module[0].parameters(), lr=0.05), AdamW(module[1].parameters(), lr=0.01)])

    wrapped, optimizer = fabric.setup(model, build(model))
    other = build(plain)
    for _ in range(2):
        fabric.backward(wrapped(torch.ones(4, 3)).square().mean())
        plain(torch.ones(4, 3)).square().mean().backward()
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
    assert_same(model.parameters(), plain.parameters())
    assert [group["optimizer"] for group in optimizer.param_groups] == ["NovoGrad", "AdamW"]
    assert isinstance(optimizer, Composite)
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_finetuning_callback_adds_a_group():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    composite = Composite([SGD(model[1].parameters(), lr=0.5), AdamW(model[2].parameters(), lr=0.1)])
    sched = WarmupAnnealing(composite, warmup_steps=2, max_steps=10)
    BaseFinetuning.unfreeze_and_add_param_group(model[0], composite, lr=0.25)
    run(composite, params_of(composite), 1)
    with pytest.warns(UserWarning, match="param group 2 was added after the schedule was built"):
        sched.step()
    assert [group["optimizer"] for group in composite.param_groups] == ["SGD", "AdamW", "SGD"]
    assert sched.base_lrs == [0.5, 0.1, 0.25]


def test_a_scheduler_of_one_part_moves_that_part():
    params = make_params()
    composite = Composite([SGD(params[:1], lr=0.5), AdamW(params[1:], lr=0.25)])
    sched = lr_scheduler.ExponentialLR(composite.optimizers[1], 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(composite, params, 1)
        sched.step()
    assert [group["lr"] for group in composite.param_groups] == [0.5, 0.125]


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.mse_loss(self.last(self.first(x)), y)

    def configure_optimizers(self):
        parts = [NovoGrad(self.first.parameters(), lr=0.05), AdamW(self.last.parameters(), lr=0.01)]
        composite = Composite(parts)
        return {"optimizer": composite, "lr_scheduler": lr_scheduler.ExponentialLR(composite, 0.9)}


def test_lightning_trains_and_resumes_with_it_as_a_plain_loop_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(4)]

    def fit(epochs, ckpt_path=None):
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=0.5,
        )  # fmt: skip
        module = Regression()
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(1)
    resumed = fit(3, tmp_path / "1.ckpt")

    module = Regression()
    configured = module.configure_optimizers()
    composite, sched = configured["optimizer"], configured["lr_scheduler"]
    for _ in range(3):
        for x, y in data:
            composite.zero_grad()
            module.training_step((x, y), 0).backward()
            torch.nn.utils.clip_grad_norm_(params_of(composite), 0.5)
            composite.step()
        sched.step()
    torch.testing.assert_close(list(resumed.parameters()), list(module.parameters()))
