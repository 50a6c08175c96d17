"""Optimizers that average weights themselves are told of evaluation, and what is saved is what they evaluate."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fit import Net, loader, module_of, trainer

from lightning_novograd import ConfigError, attach_optimizers, parse_optim, register_optimizer
from lightning_novograd.registry import unregister_optimizer

pytestmark = [
    pytest.mark.usefixtures("registered"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*num_workers.*", "ignore:.*overridden.*"),
]


class Averages(torch.optim.Optimizer):
    """SGD whose weights and their average change places between training and evaluation, as in Schedule-Free."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "train_mode": False})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"other": p.detach().clone(), "steps": torch.zeros(())}

    def _to(self, train):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != train else ():
                other = self.state[p]["other"]
                kept = p.detach().clone()
                p.data.copy_(other)
                other.copy_(kept)
            group["train_mode"] = train

    def train(self):
        self._to(True)

    def eval(self):
        self._to(False)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            assert group["train_mode"], "told to train before it steps"
            for p in group["params"]:
                state = self.state[p]
                p.sub_(group["lr"] * p.grad)
                state["steps"] += 1
                state["other"].lerp_(p, 1 / float(state["steps"]))
        return loss


@pytest.fixture
def registered():
    register_optimizer("averages", Averages)
    yield
    unregister_optimizer("averages")


class Watched(Net):
    def __init__(self, optim=None):
        torch.manual_seed(0)
        super().__init__(optim or {"name": "averages"})
        self.after_steps, self.evaluated, self.save_in_validation = [], [], None

    def on_train_batch_end(self, *args):
        self.after_steps.append(self.layer.weight.detach().clone())

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(self.layer.weight.detach().clone())
        if self.save_in_validation and self.trainer.global_step == 4:
            self.trainer.save_checkpoint(self.save_in_validation)
            assert torch.equal(self.layer.weight, self.evaluated[-1])

    test_step = validation_step
    predict_step = validation_step


def fit(net, ckpt_path=None, **options):
    run = trainer(**{"max_epochs": 2, **options})
    batches = torch.utils.data.DataLoader([torch.tensor([1.0, 2.0, 4.0])] * 8, batch_size=2)
    run.fit(net, batches, loader(2), ckpt_path=ckpt_path)
    return run


def mean(weights):
    return torch.stack(weights).mean(0)


def test_validation_and_the_trained_model_have_the_average():
    net = Watched()
    run = fit(net, val_check_interval=2)
    sanity, *validated = net.evaluated
    assert torch.equal(sanity, torch.nn.Parameter(Watched().layer.weight).data)
    for index, weight in enumerate(validated):
        torch.testing.assert_close(weight, mean(net.after_steps[: 2 * index + 2]))
    torch.testing.assert_close(net.layer.weight.data, mean(net.after_steps))
    net.evaluated.clear()
    run.test(net, loader(2), verbose=False)
    run.validate(net, loader(2), verbose=False)
    run.predict(net, loader(2))
    for weight in net.evaluated:
        torch.testing.assert_close(weight, mean(net.after_steps))


@pytest.mark.parametrize(
    "block",
    [
        {"name": "averages", "larc": {"target": "gradient"}},
        {"name": "sgd", "param_groups": [{"match": "layer.weight", "optimizer": "averages"}]},
    ],
    ids=["larc", "composite"],
)
def test_those_inside_of_others_are_told(block):
    net = Watched(block)
    fit(net)
    torch.testing.assert_close(net.layer.weight.data, mean(net.after_steps))
    torch.testing.assert_close(net.evaluated[1], mean(net.after_steps[:4]))


@pytest.mark.parametrize("weights_alone", [False, True])
def test_checkpoints_have_the_average_and_training_goes_on_without_it(weights_alone, tmp_path):
    plain, net = Watched(), Watched()
    fit(plain)
    saves = ModelCheckpoint(
        tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}", save_weights_only=weights_alone
    )
    fit(net, callbacks=[saves], enable_checkpointing=True)
    assert all(torch.equal(one, other) for one, other in zip(net.after_steps, plain.after_steps, strict=True))
    for step in range(1, 9):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        torch.testing.assert_close(saved["state_dict"]["layer.weight"], mean(net.after_steps[:step]))
        if not weights_alone:
            assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"] is False


@pytest.mark.parametrize("step", [1, 4, 7])
def test_resumed_runs_end_as_others_do(step, tmp_path):
    whole, resumed = Watched(), Watched()
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(whole, callbacks=[saves], enable_checkpointing=True)
    fit(resumed, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert torch.equal(resumed.after_steps[-1], whole.after_steps[-1])


@pytest.mark.parametrize("when", ["in validation", "when validation ends", "at the end"])
def test_so_do_those_of_checkpoints_that_were_saved_in_an_evaluation(when, tmp_path):
    whole, resumed, path = Watched(), Watched(), tmp_path / "saved.ckpt"
    callbacks = []
    if when == "in validation":
        whole.save_in_validation = path
    elif when == "when validation ends":
        callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")]
    fit(whole, callbacks=callbacks, enable_checkpointing=bool(callbacks))
    if when == "at the end":
        first = Watched()
        fit(first, max_epochs=1).save_checkpoint(path)
        torch.testing.assert_close(first.layer.weight.data, mean(whole.after_steps[:4]))
    path = tmp_path / "step=4.ckpt" if callbacks else path
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 4
    torch.testing.assert_close(saved["state_dict"]["layer.weight"], mean(whole.after_steps[:4]))
    fit(resumed, ckpt_path=path)
    assert torch.equal(resumed.after_steps[-1], whole.after_steps[-1])
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


class NoSuper(Watched):
    """Overrides every hook of a fit without `super()`, and those of checkpoints."""

    def on_fit_start(self): ...

    def on_train_start(self): ...

    def on_train_end(self): ...

    def on_train_epoch_start(self): ...

    def on_train_epoch_end(self): ...

    def on_validation_model_eval(self): ...

    def on_validation_start(self): ...

    def on_validation_end(self): ...

    def on_save_checkpoint(self, checkpoint): ...


def test_no_hook_without_super_turns_it_off(tmp_path):
    net, plain = NoSuper(), Watched()
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(net, callbacks=[saves], enable_checkpointing=True)
    fit(plain)
    assert all(torch.equal(one, other) for one, other in zip(net.after_steps, plain.after_steps, strict=True))
    assert torch.equal(net.layer.weight, plain.layer.weight)
    assert all(torch.equal(one, other) for one, other in zip(net.evaluated, plain.evaluated, strict=True))
    for step in range(1, 9):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=False)
        torch.testing.assert_close(saved["state_dict"]["layer.weight"], mean(net.after_steps[:step]))


class Fails(pl.Callback):
    def __init__(self, where):
        self.where = where

    def fail(self, where, trainer):
        if (where, trainer.global_step, trainer.state.fn) == (self.where, 3, "fit"):
            raise RuntimeError("out of memory")

    def on_train_batch_start(self, trainer, *args):
        self.fail("batch", trainer)

    def on_before_optimizer_step(self, trainer, *args):
        self.fail("step", trainer)

    def on_validation_batch_start(self, trainer, *args):
        self.fail("validation", trainer)


@pytest.mark.parametrize("where", ["batch", "step", "validation"])
def test_a_fit_that_fails_leaves_what_is_evaluated(where, tmp_path):
    net = Watched()
    saves = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=9)
    run = trainer(max_epochs=2, callbacks=[Fails(where), saves], enable_checkpointing=True, val_check_interval=3)
    batches = torch.utils.data.DataLoader([torch.tensor([1.0, 2.0, 4.0])] * 8, batch_size=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit(net, batches, loader(2))
    torch.testing.assert_close(net.layer.weight.data, mean(net.after_steps))
    (file,) = tmp_path.glob("*.ckpt")
    saved = torch.load(file, weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], net.layer.weight)
    assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
    net.evaluated.clear()
    run.validate(net, loader(2), verbose=False)
    torch.testing.assert_close(net.evaluated[0], mean(net.after_steps))


def test_the_lr_finder_trains_and_leaves_no_trace():
    net, plain = Watched(), Watched()
    run = trainer(max_epochs=2)
    pl.tuner.Tuner(run).lr_find(net, loader(64), num_training=5, early_stop_threshold=None, update_attr=False)
    assert torch.equal(net.layer.weight, plain.layer.weight)
    net.after_steps.clear()
    fit(net)
    fit(plain)
    assert torch.equal(net.layer.weight, plain.layer.weight)


def test_a_later_fit_of_another_module_is_left_alone():
    run = fit(Watched(), max_epochs=1)
    calls = []

    class Own(torch.optim.SGD):
        def train(self):
            calls.append("train")

        def eval(self):
            calls.append("eval")

    other = module_of(pl, mixin=False)
    other.configure_optimizers = lambda: Own(other.parameters(), lr=0.1)
    run.fit_loop.max_epochs = 2
    run.fit(other, loader())
    assert not calls
    run.fit_loop.max_epochs = 3
    run.fit(Net({"name": "sgd"}), loader())
    assert not [callback for callback in run.callbacks if type(callback).__name__ == "Teller"]


def test_modules_of_others_tell_theirs():
    module = attach_optimizers(module_of(pl, mixin=False), {"name": "averages"})
    run = trainer(max_epochs=1)
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["train_mode"] is False


def test_several_optimizers_are_told():
    class Manual(Watched):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()

    net = Manual({"only": {"name": "averages", "module": "layer"}})
    fit(net)
    torch.testing.assert_close(net.layer.weight.data, mean(net.after_steps))


def test_an_average_of_averages_is_refused():
    for block in (
        {"name": "averages"},
        {"name": "averages", "larc": {"target": "update"}},
        {"name": "sgd", "param_groups": [{"match": "bias", "optimizer": "averages"}]},
    ):
        with pytest.raises(ConfigError, match=r"optim\.ema: .*Averages.* averages the weights itself"):
            parse_optim({**block, "ema": 0.9})
