"""`optim.ema` where a Trainer fits again, or fails: the weights are not lost, and the model has the average."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_ema import average_of, fit, watched
from tiny_fit import loader, trainer

from lightning_novograd.training.averaging.ema import averaging_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*num_workers.*", "ignore:.*overridden.*")


def again(run, net, epochs=4):
    run.fit_loop.max_epochs = epochs
    run.fit(net, torch.utils.data.DataLoader([torch.tensor([1.0, 2.0, 4.0])] * 8, batch_size=2), loader(2))


def test_a_second_fit_goes_on_with_the_weights():
    net, plain = watched(), watched(ema=None)
    run, plain_run = fit(net), fit(plain)
    for module, its in ((net, run), (plain, plain_run)):
        its.validate(module, loader(2), verbose=False)
        again(its, module)
    assert all(torch.equal(one, other) for one, other in zip(net.after_steps, plain.after_steps, strict=True))
    torch.testing.assert_close(net.layer.weight.data, average_of(net.after_steps[8:]))


def test_a_second_fit_that_does_not_average_goes_on_with_the_weights_too():
    net, plain = watched(), watched(ema=None)
    run, plain_run = fit(net), fit(plain)
    net.optim_config = plain.optim_config
    again(run, net)
    again(plain_run, plain)
    assert torch.equal(net.layer.weight, plain.layer.weight)
    assert averaging_of(run) is None


@pytest.mark.parametrize("what", ["loaded", "another module"])
def test_a_second_fit_of_other_weights_begins_with_these(what):
    net = watched()
    run = fit(net)
    other = {name: value + 1 for name, value in net.state_dict().items()}
    second = net if what == "loaded" else watched()
    second.load_state_dict(other)
    first_step = watched(ema=None)
    first_step.load_state_dict(other)
    fit(first_step, max_steps=1)
    second.after_steps.clear()
    again(run, second, epochs=3)
    assert torch.equal(second.after_steps[0], first_step.after_steps[0])


def test_the_average_of_a_second_fit_waits_for_its_first_step():
    net = watched()
    run = fit(net, accumulate_grad_batches=4)
    net.after_steps.clear()
    again(run, net, epochs=3)
    assert torch.equal(net.layer.weight.data, net.after_steps[-1])  # one step: the average is that of one


@pytest.mark.parametrize("where", ["validation", "training"])
def test_a_fit_that_fails_leaves_the_average_and_keeps_the_weights(where, tmp_path):
    class Fails(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            self.fail("training", trainer)

        def on_validation_batch_start(self, trainer, *args):
            self.fail("validation", trainer)

        def fail(self, here, trainer):
            if here == where and trainer.state.fn == "fit" and trainer.global_step == 4 and not trainer.should_stop:
                trainer.should_stop = True
                raise RuntimeError("out of memory")

    net, plain = watched(), watched(ema=None)
    saves = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=9)
    run = trainer(max_epochs=2, callbacks=[Fails(), saves], enable_checkpointing=True, num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        again(run, net, epochs=2)
    torch.testing.assert_close(net.layer.weight.data, average_of(net.after_steps))
    (file,) = tmp_path.glob("*.ckpt")
    saved = torch.load(file, weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], net.layer.weight)
    assert torch.equal(saved["current_model_state"]["layer.weight"], net.after_steps[-1])
    plain.load_state_dict(saved["current_model_state"])
    fit(plain, max_steps=1)
    run.should_stop = False
    net.after_steps.clear()
    run.callbacks = [callback for callback in run.callbacks if not isinstance(callback, Fails)]
    again(run, net, epochs=3)
    assert torch.equal(net.after_steps[0], plain.after_steps[0])
