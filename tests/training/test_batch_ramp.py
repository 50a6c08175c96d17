"""A batch that grows inside of an epoch: what each step is made of, its LR, the schedule's length, resuming."""

import copy
import pickle
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from ranks import run_ranks
from tiny_fit import BLOCK, PACKAGES, Net, Numbers, Stream, loader, module_of, trainer
from torch.utils.data import DataLoader

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch import solve_batch_ramp
from lightning_novograd.training.callbacks.batch_ramp import Accumulation, BatchRampScheduler

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|dirpath has changed|not resumable).*")
STAGES = [[0, 2], [3, 8], [5, 4]]  # batches of 2: accumulation 1, 4, 2
LINEAR = {"name": "sgd", "lr": 0.1, "sched": {"name": "WarmupAnnealing"}}


def ramp(stages=STAGES, **changes):
    return solve_batch_ramp(stages, **{"devices": 1, "per_device_batch_size": 2, **changes})


class Watched(Net):
    """Notes for each optimizer step the samples that its gradient has, and the gradient."""

    def __init__(self, optim):
        super().__init__(optim)
        self.steps, self.grads = [], []
        self._samples = []

    def training_step(self, batch, batch_idx):
        self._samples += [int(x) for x in batch[:, 0]]
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        self.grads.append(self.layer.weight.grad.clone())
        self.steps.append(self._samples)
        self._samples = []


def fitted(net, samples, callback=None, ckpt=None, callbacks=(), **settings):
    run = trainer(callbacks=[callback or BatchRampScheduler(ramp()), *callbacks], **settings)
    run.fit(net, loader(samples), ckpt_path=ckpt)
    return run


def test_each_step_has_its_batch_wherever_in_an_epoch():
    net = Watched(LINEAR)
    run = fitted(net, 26, max_epochs=2)
    # 13 batches an epoch: 1 1 1 4 4 2; then accumulation 2, and at the end what is left
    assert [len(step) for step in net.steps] == [2, 2, 2, 8, 8, 4, *[4] * 6, 2]
    assert [sample for step in net.steps for sample in step] == [*range(26)] * 2
    assert run.global_step == len(net.steps) == 13
    assert net.lrs[-1] == pytest.approx(0.1 / 13)  # WarmupAnnealing is linear, and 13 steps long


@pytest.mark.parametrize("samples", [26, 28])  # 28: the last step of the epoch has 1 batch of 2
def test_a_gradient_is_the_mean_over_its_batch(samples):
    torch.manual_seed(0)
    layer, net = torch.nn.Linear(3, 2), Watched({"name": "sgd", "lr": 0.001})
    net.layer.load_state_dict(layer.state_dict())
    fitted(net, samples, max_epochs=1)
    for samples, grad in zip(net.steps, net.grads, strict=True):
        x = torch.stack([torch.full((3,), float(sample)) for sample in samples])
        layer.zero_grad()
        layer(x).square().mean().backward()
        torch.testing.assert_close(grad, layer.weight.grad, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.001 * parameter.grad


@pytest.mark.parametrize("samples", [2, 8, 26, 30])
@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_steps": 7}, {"max_epochs": 4, "max_steps": 50}])
def test_the_schedule_is_as_long_as_the_fit(samples, end):
    net = Watched(LINEAR)
    run = fitted(net, samples, **end)
    assert run.lr_scheduler_configs[0].scheduler.arguments["max_steps"] == run.global_step == len(net.lrs)


@pytest.mark.parametrize("limit", [1.0, 7, 0.5])
def test_the_last_step_of_an_epoch_is_the_mean_over_what_it_has(limit):
    """Lightning divides by the whole accumulation, however few batches have accumulated."""

    class Sizes(pl.Callback):
        def __init__(self):
            self.said = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.said.append((batch_idx, int(trainer.accumulate_grad_batches)))
            if batch_idx + 1 == trainer.num_training_batches:
                assert trainer.callback_metrics["global_batch_size"] == 2 * self.said[-1][1]

    net, sizes = Watched(LINEAR), Sizes()
    fitted(net, 28, BatchRampScheduler(ramp([[0, 8]])), callbacks=[sizes], max_epochs=2, limit_train_batches=limit)
    batches = {1.0: 14, 7: 7, 0.5: 7}[limit]
    left = batches % 4
    expected = [(index, left if index >= batches - left else 4) for index in range(batches)]
    assert sizes.said == expected * 2
    assert [len(step) for step in net.steps] == ([8] * (batches // 4) + [2 * left]) * 2


def test_an_accumulation_counts_from_its_first_batch():
    for four in (Accumulation(4, 3), copy.deepcopy(Accumulation(4, 3)), pickle.loads(pickle.dumps(Accumulation(4, 3)))):
        assert [batch % four for batch in (3, 4, 7, 11)] == [0, 1, 0, 0]
        assert (four, 8 / four, 9 // four) == (4, 2.0, 2)


def test_a_stream_needs_no_length():
    net = Watched(BLOCK)
    run = trainer(callbacks=[BatchRampScheduler(ramp())], max_steps=7)
    run.fit(net, DataLoader(Stream(40), batch_size=2))
    assert [len(step) for step in net.steps] == [2, 2, 2, 8, 8, 4, 4]


# ---------------------------------------------------------------------------------------------- the LR


def used_lrs(net, **settings):
    """The LRs that the optimizer used: of SGD's steps, from the weights; and what was left in its groups after each."""
    used, left = [], []

    class Note(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            optimizer = trainer.optimizers[0]
            inner = optimizer.step

            def step(*args, **kwargs):
                before = net.layer.weight.detach().clone()
                result = inner(*args, **kwargs)
                used.append(((before - net.layer.weight) / net.layer.weight.grad).detach().median().item())
                left.append(float(optimizer.param_groups[0]["lr"]))
                return result

            optimizer.step = step

    fitted(net, 26, callbacks=[Note()], **settings)
    return used, left


@pytest.mark.parametrize("sched", [{"name": "WarmupAnnealing"}, {"name": "StepLR", "interval": "step", "step_size": 2}])
@pytest.mark.parametrize(("rule", "power"), [("linear", 1.0), ("sqrt", 0.5), ("none", 0.0)])
def test_the_lr_follows_the_batch_and_the_schedule(sched, rule, power):
    block = {"name": "sgd", "lr": 0.01, "sched": sched}
    used, left = used_lrs(Watched(block), max_epochs=1, callback=BatchRampScheduler(ramp(), rule))
    factors = [(size / 2) ** power for size in (2, 2, 2, 8, 8, 4)]
    _, alone = used_lrs(Watched(block), max_epochs=1, callback=BatchRampScheduler(ramp()))
    assert left == pytest.approx(alone)
    assert used == pytest.approx([factor * lr for factor, lr in zip(factors, alone, strict=True)], rel=1e-3)


def test_a_tensor_lr_stays_the_same_tensor():
    net = Watched({"name": "adamw", "lr": 0.01, "sched": {"name": "WarmupAnnealing"}})
    callback = BatchRampScheduler(ramp(), "linear")
    callback._step = 3
    optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.25))
    lr = optimizer.param_groups[0]["lr"]
    callback._scale(optimizer, (), {})
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 1.0
    callback.state_dict()  # as a checkpoint in the middle of a step would
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


# ---------------------------------------------------------------------------------------------- resuming


class Resumable:
    """A loader with a position, as torchdata's StatefulDataLoader."""

    def __init__(self, samples):
        self.batches, self.position = [*DataLoader(Numbers(samples), batch_size=2)], 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.position == len(self.batches):
            self.position = 0
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def run_of(folder, ckpt=None, rule="linear", **settings):
    torch.manual_seed(1)
    net = Watched({**BLOCK, "lr": 0.01, "sched": {"name": "WarmupAnnealing", "warmup_steps": 2}})
    saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"max_epochs": 2, "enable_checkpointing": True, **settings}
    run = trainer(callbacks=[BatchRampScheduler(ramp(), rule), saves], **settings)
    run.fit(net, Resumable(26), ckpt_path=ckpt, weights_only=True)
    return net, run


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 9])
def test_a_resumed_run_goes_on_as_if_uninterrupted(tmp_path, step):
    whole, _ = run_of(tmp_path / "whole")
    rest, run = run_of(tmp_path / "rest", tmp_path / "whole" / f"step={step}.ckpt")
    assert run.global_step == 13
    assert rest.steps == whole.steps[step:]
    assert rest.lrs == whole.lrs[step:]
    torch.testing.assert_close(rest.layer.state_dict(), whole.layer.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_in_the_middle_of_a_step(tmp_path):
    """Lightning saves no gradients: the step is made of the batches that are left, and ends where it would have."""

    class SaveAt(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 0 and batch_idx == 4:  # the second of four
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def fit(ckpt=None):
        net = Watched(LINEAR)
        run = trainer(callbacks=[BatchRampScheduler(ramp()), SaveAt()], max_epochs=2)
        run.fit(net, Resumable(26), ckpt_path=ckpt, weights_only=True)
        return net

    whole, rest = fit(), fit(tmp_path / "half.ckpt")
    assert rest.steps[0] == whole.steps[3][4:]
    assert rest.steps[1:] == whole.steps[4:]


# ---------------------------------------------------------------------------------------------- in the optim block


def with_ramp(**changes):
    """A block with the ramp of `ramp()`."""
    return {**LINEAR, "large_batch": {"global_batch_size": STAGES, "per_device_batch_size": 2, **changes}}


@PACKAGES
def test_the_block_says_it_all(package):
    net, alone = module_of(package), module_of(package)
    net.optim_config, alone.optim_config = with_ramp(lr_scaling="linear"), LINEAR
    run = trainer(package, max_epochs=2)
    run.fit(net, loader(26))
    trainer(package, callbacks=[BatchRampScheduler(ramp(), "linear")], max_epochs=2).fit(alone, loader(26))
    assert run.global_step == len(net.lrs) == 13
    assert net.lrs == alone.lrs
    run.fit_loop.max_epochs = 3
    run.fit(net, loader(26))  # replaces its own callback
    assert run.global_step == 20
    run.fit_loop.max_epochs = 4
    run.fit(alone, loader(26))  # a block without it
    assert (run.global_step, run.accumulate_grad_batches) == (33, 1)


def test_one_number_is_an_accumulation_for_the_whole_run():
    net = Watched(with_ramp(global_batch_size=8))
    trainer(max_epochs=1).fit(net, loader(26))
    assert [len(step) for step in net.steps] == [8, 8, 8, 2]


@pytest.mark.parametrize(
    ("batch", "length", "step"),
    [
        (8, "epochs x 16 batches / 4 accumulated (large_batch)", "At optimizer step 0: global batch 8 ="),
        (
            STAGES,
            "epochs x 16 batches / the accumulation of the batch ramp",
            "At optimizer step 3, in the stage from 3 on",
        ),
    ],
)
def test_the_log_speaks_of_stages_only_where_there_are_several(batch, length, step, caplog):
    net = Net({**LINEAR, "large_batch": {"global_batch_size": batch, "per_device_batch_size": 2}})
    with caplog.at_level("INFO"):
        trainer(max_epochs=1).fit(net, loader(32))
    assert length in caplog.text
    assert step in caplog.text


@pytest.mark.parametrize(("fn", "step"), [("validate", "validation"), ("test", "test"), ("predict", "predict")])
def test_who_does_not_train_needs_no_ramp(fn, step):
    run = trainer(accumulate_grad_batches=2)
    cls = type("Evaluated", (Watched,), {f"{step}_step": lambda self, batch, batch_idx: None})
    getattr(run, fn)(cls(with_ramp()), loader(4))
    assert not any(isinstance(callback, BatchRampScheduler) for callback in run.callbacks)


@pytest.mark.parametrize(
    ("block", "settings", "words"),
    [
        (with_ramp(), {"callbacks": [BatchRampScheduler(ramp())]}, r"optim\.large_batch: the Trainer has a BatchRampS"),
        (with_ramp(), {"accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches: is 2, but the batch ramp"),
        (
            with_ramp(per_device_batch_size=1),
            {},
            r"optim\.large_batch\.per_device_batch_size: 1, but the loader deals batches of 2",
        ),
    ],
)
def test_what_contradicts_the_block_is_refused(block, settings, words):
    with pytest.raises(ConfigError, match=words):
        trainer(max_epochs=1, **settings).fit(Watched(block), loader(8))


def test_a_hook_that_leaves_out_ours_is_refused():
    class Forgets(Watched):
        def configure_callbacks(self):
            return []

    with pytest.raises(ConfigError, match=r"optim\.large_batch: Forgets\.configure_callbacks leaves out"):
        trainer(max_epochs=1).fit(Forgets(with_ramp()), loader(8))


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches: is 2, but the batch ramp"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1})]}, "GradientAccumulationScheduler and a batch ramp"),
    ],
)
def test_another_accumulation_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        fitted(Watched(LINEAR), 8, max_epochs=1, **settings)


def test_another_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match="the batch ramp is for 2 processes, the Trainer has 1"):
        fitted(Watched(LINEAR), 8, BatchRampScheduler(ramp([[0, 8]], devices=2)), max_epochs=1)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match=r"large_batch\.lr_scaling: unknown rule 'lineer'; did you mean 'linear'"):
        BatchRampScheduler(ramp(), "lineer")


def test_manual_optimization_is_refused():
    net = Watched(LINEAR)
    net.automatic_optimization = False
    with pytest.raises(ConfigError, match="manual optimization"):
        fitted(net, 8, max_epochs=1)


def test_two_fits_of_one_trainer():
    run = fitted(Watched(LINEAR), 26, max_epochs=1)
    run.fit_loop.max_epochs = 2
    net = Watched(LINEAR)
    run.fit(net, loader(26))
    assert run.global_step == 13
    assert [len(step) for step in net.steps] == [*[4] * 6, 2]


# ---------------------------------------------------------------------------------------------- two processes


def run_alone(out, processes, *ckpt):
    run_ranks(Path(__file__).with_name("ddp_batch_ramp.py"), processes, out, processes, *ckpt)
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_two_processes_make_the_same_steps_and_resume(tmp_path):
    one, two = run_alone(tmp_path / "one", 1), run_alone(tmp_path / "two", 2)
    assert one["steps"] == one["length"] == len(one["lrs"]) == 13
    assert {**two, "weights": None} == {**one, "weights": None}
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-5)
    rest = run_alone(tmp_path / "rest", 2, tmp_path / "two-saved" / "epoch=0.ckpt")
    assert rest["lrs"] == two["lrs"][6:]
    torch.testing.assert_close(rest["weights"], two["weights"], rtol=0, atol=0)
