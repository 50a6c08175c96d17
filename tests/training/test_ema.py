"""`optim.ema`: the average is what is evaluated, the weights are what trains, and no checkpoint mixes them up."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from ranks import run_ranks
from tiny_ema import DECAY, Watched, average_of, fit, watched
from tiny_fit import PACKAGES, Net, block, loader, module_of, trainer
from torch.optim.swa_utils import AveragedModel

from lightning_novograd import ConfigError, attach_optimizers, build_optimizers
from lightning_novograd.training.averaging.ema import averaging_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*num_workers.*", "ignore:.*overridden.*")


def equal(state, other):
    assert state.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in state.items())


# ----------------------------------------------------------------------------------------------------- what it does


def test_validation_and_the_trained_model_have_the_average_and_training_goes_on_without_it():
    net, plain = watched(), watched(ema=None)
    fit(net)
    fit(plain)
    assert len(net.after_steps) == 8
    for weight, other in zip(net.after_steps, plain.after_steps, strict=True):
        assert torch.equal(weight, other)
    torch.testing.assert_close(net.validated[0], average_of(net.after_steps[:4]))
    torch.testing.assert_close(net.validated[1], average_of(net.after_steps))
    torch.testing.assert_close(net.layer.weight.data, average_of(net.after_steps))


def test_it_is_lightnings_own_callback():
    run = fit(
        watched(ema={"decay": 0.9, "update_every_n_steps": 2, "update_starting_at_step": 3, "use_buffers": False})
    )
    callback = averaging_of(run)
    assert isinstance(callback, EMAWeightAveraging)
    assert callback.state_key == "EMAWeightAveraging"
    assert (callback.update_every_n_steps, callback.update_starting_at_step) == (2, 3)
    assert callback._use_buffers is False
    assert int(callback._average_model.n_averaged) == 2  # after steps 5 and 7


def test_integers_are_copied_not_averaged():
    net = watched(ema=0.999)
    run = fit(net)
    assert int(net.count) == 8
    assert int(averaging_of(run)._average_model.module.count) == 8


def test_the_average_is_put_where_the_model_is():
    """Lightning makes it before the model is on its device."""
    net = watched()
    callback = averaging_of(fit(net))
    assert callback._average_model.module.layer.weight.device.type == "cpu"
    callback.on_fit_start(None, net.to("meta"))
    assert callback._average_model.module.layer.weight.device.type == "meta"


def test_the_average_may_stay_on_the_cpu():
    net = watched(ema={"decay": 0.9, "device": "cpu"})
    callback = averaging_of(fit(net))
    callback.on_fit_start(None, net.to("meta"))
    assert callback._average_model.module.layer.weight.device.type == "cpu"


@PACKAGES
def test_both_packages_of_lightning_and_modules_of_others(package):
    module = attach_optimizers(module_of(package, mixin=False), block(ema=DECAY))
    run = trainer(package, max_epochs=1)
    run.fit(module, loader())
    assert isinstance(averaging_of(run), package.callbacks.EMAWeightAveraging)


def test_fits_one_after_the_other_begin_anew():
    net = watched()
    run = fit(net)
    first = averaging_of(run)
    run.fit_loop.max_epochs = 4
    run.fit(net, loader(), loader(2))
    assert averaging_of(run) is not first
    assert sum(isinstance(callback, WeightAveraging) for callback in run.callbacks) == 1


# ------------------------------------------------------------------------------------------------------- checkpoints


def states(run):
    """The weights that train and the average, after a run."""
    average = averaging_of(run)._average_model
    return average.module.state_dict(), run.lightning_module.state_dict(), int(average.n_averaged)


def assert_same_end(run, other):
    weights, average, count = states(run)
    assert count == states(other)[2]
    assert equal(weights, states(other)[0])
    assert equal(average, states(other)[1])
    assert not equal(weights, average)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_runs_that_were_interrupted_end_as_others_do(step, tmp_path):
    whole = fit(watched())
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(watched(), callbacks=[saves], enable_checkpointing=True)
    assert_same_end(fit(watched(), ckpt_path=tmp_path / f"step={step}.ckpt"), whole)


def test_a_run_that_was_interrupted_in_validation_ends_as_others_do(tmp_path):
    """The model has the average then: Lightning's callback would save it as the weights."""
    net = watched()
    net.save_in_validation = tmp_path / "validation.ckpt"
    whole = fit(net, val_check_interval=2)
    saved = torch.load(tmp_path / "validation.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["layer.weight"], average_of(net.after_steps[:6]))
    assert torch.equal(saved["current_model_state"]["layer.weight"], net.after_steps[5])
    assert_same_end(fit(watched(), ckpt_path=tmp_path / "validation.ckpt", val_check_interval=2), whole)


def test_a_run_that_has_ended_can_be_prolonged(tmp_path):
    """The model has the average from then on; Lightning's callback would have lost the weights."""
    whole = fit(watched(), max_epochs=4)
    run = fit(watched(), max_epochs=2)
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert_same_end(fit(watched(), ckpt_path=tmp_path / "end.ckpt", max_epochs=4), whole)


def test_checkpoints_have_the_average_to_evaluate(tmp_path):
    net = watched()
    run = fit(net)
    run.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Watched.load_from_checkpoint(tmp_path / "end.ckpt", optim=None)
    torch.testing.assert_close(loaded.layer.weight.data, average_of(net.after_steps))


def test_checkpoints_of_weights_alone_have_it_too(tmp_path):
    """Lightning tells no callback of these."""
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_weights_only=True, filename="{step}", save_top_k=-1)
    net = watched()
    run = fit(net, callbacks=[saves], enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["layer.weight"], average_of(net.after_steps[:3]))
    run.save_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"]["layer.weight"], average_of(net.after_steps))


@pytest.mark.parametrize("evaluate", ["test", "validate"])
def test_a_checkpoint_that_is_evaluated_after_the_run_is_evaluated_with_its_average(evaluate, tmp_path):
    net = watched()
    run = fit(
        net, callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}")], enable_checkpointing=True
    )
    net.validated.clear()
    path = next(tmp_path.glob("step=*.ckpt"))
    getattr(run, evaluate)(net, loader(2), ckpt_path=path, verbose=False)
    steps = int(path.stem.removeprefix("step="))
    seen = net.tested if evaluate == "test" else net.validated
    torch.testing.assert_close(seen[0], average_of(net.after_steps[:steps]))


@pytest.mark.parametrize("evaluate", ["test", "validate"])
def test_the_model_that_is_evaluated_after_the_run_has_the_average(evaluate):
    net = watched()
    run = fit(net)
    net.validated.clear()
    getattr(run, evaluate)(net, loader(2), verbose=False)
    torch.testing.assert_close((net.tested + net.validated)[0], average_of(net.after_steps))


def test_before_the_first_update_there_is_no_average_to_show(tmp_path):
    """Lightning would validate, save and return the weights of the start."""
    net = watched(ema={"decay": DECAY, "update_starting_at_step": 6})
    run = fit(net, max_epochs=1)
    run.save_checkpoint(tmp_path / "early.ckpt")
    assert torch.equal(net.validated[0], net.after_steps[3])
    assert torch.equal(net.layer.weight.data, net.after_steps[3])
    saved = torch.load(tmp_path / "early.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], net.after_steps[3])
    late = watched(ema={"decay": DECAY, "update_starting_at_step": 6})
    resumed = fit(late, ckpt_path=tmp_path / "early.ckpt")
    torch.testing.assert_close(late.validated[0], average_of(late.after_steps[2:]))
    assert_same_end(resumed, fit(watched(ema={"decay": DECAY, "update_starting_at_step": 6})))


def test_a_run_that_does_not_average_goes_on_with_the_weights(tmp_path, caplog):
    fit(watched(), max_epochs=1).save_checkpoint(tmp_path / "averaged.ckpt")
    plain, resumed = watched(ema=None), watched(ema=None)
    fit(plain)
    with caplog.at_level("WARNING"):
        fit(resumed, ckpt_path=tmp_path / "averaged.ckpt")
    assert torch.equal(resumed.layer.weight, plain.layer.weight)
    assert "it goes on with those that were trained" in " ".join(caplog.messages)


def test_a_run_may_begin_to_average(tmp_path):
    fit(watched(ema=None), max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")
    net = watched()
    fit(net, ckpt_path=tmp_path / "plain.ckpt")
    torch.testing.assert_close(net.layer.weight.data, average_of(net.after_steps))


# ------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_the_modules_own_stay(several):
    class Own(pl.Callback):
        pass

    class Brings(Watched):
        def configure_callbacks(self):
            ours = super().configure_callbacks()
            return [Own(), *ours] if several else [*ours, Own()]

    class Single(pl.LightningModule):
        def configure_callbacks(self):
            return Own()

    class Below(Net, Single):
        pass

    for net in (Brings(block(ema=DECAY)), Below(block(ema=DECAY))):
        run = trainer(max_epochs=1)
        run.fit(net, loader())
        assert sum(isinstance(callback, Own) for callback in run.callbacks) == 1
        assert averaging_of(run) is not None


def test_callbacks_without_ours_are_refused():
    class Forgets(Watched):
        def configure_callbacks(self):
            return []

    with pytest.raises(ConfigError, match=r"optim\.ema: Forgets\.configure_callbacks leaves out what super\(\)"):
        fit(Forgets(block(ema=DECAY)))
    fit(Forgets(block()))


@pytest.mark.parametrize(
    "callback",
    [
        EMAWeightAveraging(),
        WeightAveraging(),
        StochasticWeightAveraging(swa_lrs=0.1),
        type("Mine", (WeightAveraging,), {})(),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_two_averages_are_refused(callback):
    with pytest.raises(ConfigError, match=rf"optim\.ema: the Trainer has a {type(callback).__name__}"):
        fit(watched(), callbacks=[callback])


# --------------------------------------------------------------------------------------------------------- refusals


def test_manual_optimization_is_refused():
    net = watched()
    net.automatic_optimization = False
    with pytest.raises(ConfigError, match=r"optim\.ema: .*automatic optimization"):
        fit(net)


def test_sharded_weights_are_refused(monkeypatch):
    net, run = watched(), trainer()
    monkeypatch.setattr(type(run), "strategy", property(lambda self: FSDPStrategy.__new__(FSDPStrategy)))
    net.trainer = run
    run.state.fn = pl.trainer.states.TrainerFn.FITTING
    with pytest.raises(ConfigError, match=r"optim\.ema: .*FSDPStrategy shards them"):
        net.configure_callbacks()


def test_a_lightning_without_the_callback_is_refused(monkeypatch):
    monkeypatch.delattr(pl.callbacks, "EMAWeightAveraging")
    with pytest.raises(ConfigError, match=r"optim\.ema: this lightning\.pytorch has no EMAWeightAveraging"):
        fit(watched())


def test_layers_that_come_too_late_are_refused():
    class Late(Watched):
        def setup(self, stage):
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(ConfigError, match=r"optim\.ema: 'more.bias' came after the average"):
        fit(Late(block(ema=DECAY)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_which_an_average_stands_still_are_refused(dtype):
    with pytest.raises(ConfigError, match=rf"optim\.ema: 'layer.weight' is {dtype}"):
        fit(watched().to(dtype))


def test_several_optimizers_are_refused():
    several = {"one": block(), "two": block(ema=0.9)}
    with pytest.raises(ConfigError, match=r"optim\.two\.ema: the average is of the whole model"):
        Net(several)


def test_build_optimizers_refuses_what_only_a_loop_can_do():
    with pytest.raises(
        ConfigError, match=r"optim\.ema: .*AveragedModel\(module, multi_avg_fn=get_ema_multi_avg_fn\(0.9"
    ):
        build_optimizers(block(ema=0.9, sched=None), torch.nn.Linear(1, 1))
    assert AveragedModel  # what it tells of


# ----------------------------------------------------------------------------------------------------- two processes


def run_alone(out, processes, *ckpt):
    run_ranks(Path(__file__).with_name("ddp_ema.py"), processes, out, processes, *ckpt)
    return [torch.load(f"{out}-{rank}", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_all_ranks_have_the_average_of_one_process_and_resume_with_it(tmp_path):
    [one], ranks = run_alone(tmp_path / "one", 1), run_alone(tmp_path / "two", 2)
    assert one["steps"] == 8  # 4 + 1 + 3
    for rank in ranks:
        assert (rank["steps"], rank["lrs"]) == (one["steps"], one["lrs"])
        torch.testing.assert_close(rank["validated"], one["validated"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank["average"], ranks[0]["average"], rtol=0, atol=0)
    resumed = run_alone(tmp_path / "rest", 2, tmp_path / "two-saved" / "epoch=0.ckpt")
    for rank in resumed:
        assert rank["lrs"] == one["lrs"][5:]
        torch.testing.assert_close(rank["average"], ranks[0]["average"], rtol=0, atol=0)
