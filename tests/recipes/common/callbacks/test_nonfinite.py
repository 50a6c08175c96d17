"""NaN and infinity in a training: who is named, and what a step that is left out leaves behind."""

import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from tiny_speech import batch, loader, module, trainer

from lightning_novograd.errors import DataError, LightningNovoGradError
from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.common.callbacks import DivergenceError
from lightning_novograd.recipes.common.callbacks.nonfinite import gradient_sizes, shown
from lightning_novograd.training.averaging.ema import averaging_of

NAN, INF = float("nan"), float("inf")
HINT = "; a lower optim.lr, a longer warmup or optim.grad_clip_norm may help"


def fit(batches, action="raise", most=10, model=None, **options):
    guard = NonFiniteGuard(action, most)
    model = model or module(guard)
    model.guard = guard
    made = trainer([guard, *options.pop("callbacks", ())], **options)
    made.fit(model, loader(batches), options.pop("dev", None))
    return model, guard, made


def state_of(model) -> dict:
    return {**model.state_dict(), **{f"optimizer.{i}": s for i, s in enumerate(flat(model.optimizers().state_dict()))}}


def flat(tree) -> list:
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else [tree]
    return [tree] if values == [tree] else [leaf for value in values for leaf in flat(value)]


@pytest.mark.parametrize("value", [NAN, INF])
def test_samples_are_said_with_step_and_utterance_and_nothing_has_moved(value):
    kept = []
    watch = pl.callbacks.LambdaCallback(
        on_train_batch_start=lambda t, m, b, i: kept.append(copy.deepcopy(dict(m.named_parameters())))
    )
    model = module()
    with pytest.raises(DataError) as error:
        fit([batch(1), batch(2), batch(3, value=value)], model=model, callbacks=[watch])
    assert str(error.value) == (
        "optimizer step 3 (epoch 1): samples that are not finite (NaN or infinity) in m.json:31"
    )
    assert all(torch.equal(kept[-1][name], value) for name, value in model.named_parameters())


def test_a_loss_is_said_with_all_utterances_that_it_is_of():
    with pytest.raises(DivergenceError) as error:
        fit([batch(1), batch(2, value=1e30)])
    problem = "the loss of m.json:20, m.json:21 is not finite (NaN or infinity)"
    assert str(error.value) == f"optimizer step 2 (epoch 1): {problem}{HINT}"
    assert isinstance(error.value, LightningNovoGradError)


def test_a_gradient_is_said_with_the_weight():
    model = module()
    model.model.decoder.decoder_layers[0].bias.register_hook(lambda g: g.fill_(INF))
    with pytest.raises(
        DivergenceError, match=r"^optimizer step 1 \(epoch 1\): the gradient of model\.decoder\."
    ) as error:
        fit([batch(1)], model=model)
    assert ".bias is not finite (NaN or infinity), after m.json:10, m.json:11; a lower" in str(error.value)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_skips_a_step_is_the_run_without_its_batches(accumulate):
    good, bad = [batch(i) for i in range(4)], [batch(8), batch(9, value=NAN)][-accumulate:]
    constant = {"sched": None}
    ours, guard, made = fit(
        [*good[:2], *bad, *good[2:]], "skip", model=module(**constant), accumulate_grad_batches=accumulate
    )
    theirs, *_ = fit(good, "skip", model=module(**constant), accumulate_grad_batches=accumulate)
    assert state_of(ours).keys() == state_of(theirs).keys()
    for name, expected in state_of(theirs).items():
        torch.testing.assert_close(state_of(ours)[name], expected, rtol=0, atol=0, msg=name)
    assert (guard.skipped, guard.consecutive, guard.is_skipping) == (1, 0, False)
    assert made.global_step == 4 // accumulate + 1


def test_the_schedule_waits_and_lightnings_count_goes_on(caplog):
    *_, made = fit([batch(0), batch(1, value=NAN), batch(2)], "skip")
    assert made.global_step == 3
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 2
    said = "samples that are not finite (NaN or infinity) in m.json:11; the step is left out (1 so far, 1 in a row)"
    assert [r.getMessage() for r in caplog.records if r.name.endswith("nonfinite")] == [
        f"optimizer step 2 (epoch 1): {said}"
    ]


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedule_that_counts_epochs_does_not_wait(interval):
    sched = {"name": "StepLR", "step_size": 1, "gamma": 0.5, "interval": interval}
    *_, made = fit([batch(0), batch(1, value=NAN)], "skip", model=module(sched=sched), max_epochs=3)
    assert made.optimizers[0].param_groups[0]["lr"] == 0.01 * 0.5**3


def test_samples_decide_where_the_loss_does_not_show_them():
    model = module()
    step = model.training_step
    model.training_step = lambda batch, batch_idx: step(
        batch._replace(wave_BS=batch.wave_BS.nan_to_num()), 0
    )  # as a mask would
    with pytest.raises(DataError, match=r"^optimizer step 2 \(epoch 1\): samples .* in m\.json:11$"):
        fit([batch(0), batch(1, value=NAN)], model=model)


def test_ema_waits_with_the_weights():
    *_, made = fit([batch(0), batch(1, value=NAN), batch(2)], "skip", model=module(ema=0.5))
    assert int(averaging_of(made)._average_model.n_averaged) == 2


def two_ranks(monkeypatch, rank: int, others: list) -> SimpleNamespace:
    """A trainer of one of two ranks; `others` is what the other one brings to each exchange."""

    def gather(of_ranks, mine):
        theirs = others.pop(0)(mine)
        of_ranks[:] = [theirs, mine] if rank else [mine, theirs]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    place = {"world_size": 2, "global_step": 4, "current_epoch": 0, "is_global_zero": rank == 0}
    strategy = SimpleNamespace(reduce=lambda flag, reduce_op: flag + 1)
    return SimpleNamespace(**place, precision_plugin=object(), strategy=strategy)


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_of_another_rank_are_named_on_all(monkeypatch, rank):
    made = two_ranks(monkeypatch, rank, [lambda mine: ["a.running_mean"]])
    with pytest.raises(DivergenceError, match=r"^after optimizer step 4 weights are not finite .*: a\.running_mean;"):
        NonFiniteGuard()._check_weights(made, module())


@pytest.mark.parametrize(("lost", "action"), [("weights", "skip"), ("gradients", "raise")])
def test_ranks_that_find_different_things_ask_each_other_once_and_decide_alike(monkeypatch, lost, action):
    """Under sharded weights each looks at its own part: here the first rank at the bad one."""
    bad = broken(NAME) if lost == "weights" else module()
    if lost == "gradients":
        bad.get_parameter(NAME).grad = torch.full_like(bad.get_parameter(NAME), INF)
    of_first: list = []
    answers = [lambda found: of_first.extend(found) or [type(found[0])(*[[]] * 5)], lambda _: of_first]
    messages = []
    for rank, model in enumerate((bad, module())):
        made, guard = two_ranks(monkeypatch, rank, left := [answers[rank]]), NonFiniteGuard(action)
        guard.on_train_batch_start(SimpleNamespace(accumulate_grad_batches=1), model, batch(1), 0)
        guard.on_before_backward(made, model, torch.tensor(1.0))
        with pytest.raises(DivergenceError) as error:
            guard.passes(made, model)
        assert not left
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert NAME in messages[1]


def test_the_count_travels():
    guard = NonFiniteGuard("skip")
    guard.load_state_dict({"skipped": 3, "consecutive": 1})
    assert guard.state_dict() == {"skipped": 3, "consecutive": 1}
    assert guard.is_skipping


def test_too_many_bad_steps_in_a_row():
    bad = [batch(i, value=NAN) for i in range(3)]
    _, guard, _ = fit([batch(0), *bad[:2], batch(1), *bad[:2]], "skip", most=2)
    assert (guard.skipped, guard.consecutive) == (4, 2)
    message = (
        r"^3 optimizer steps in a row are not finite, the last: optimizer step 3 \(epoch 1\): samples .* m\.json:21$"
    )
    with pytest.raises(DivergenceError, match=message):
        fit(bad, "skip", most=2)


def broken(name: str):
    model = module()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = NAN
    return model


NAME = "model.decoder.decoder_layers.0.weight"


def test_weights_that_are_lost_cannot_be_skipped():
    with pytest.raises(DivergenceError) as error:
        fit([batch(1)], "skip", model=broken(NAME))
    assert str(error.value) == (f"optimizer step 1 (epoch 1): weights are not finite (NaN or infinity): {NAME}{HINT}")


class Breaks(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        with torch.no_grad():
            pl_module.get_parameter(NAME).view(-1)[0] = INF


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_no_checkpoint_has_weights_that_are_not_finite(tmp_path, action):
    saves = pl.callbacks.ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)
    message = rf"^after optimizer step 1 weights are not finite \(NaN or infinity\): {NAME}; a lower"
    with pytest.raises(DivergenceError, match=message):
        fit([batch(1)], action, callbacks=[Breaks(), saves], enable_checkpointing=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DivergenceError, match=message):  # nor does a run end with them
        fit([batch(1)], action, callbacks=[Breaks()])


@pytest.mark.parametrize("split", ["dev", "test"])
def test_an_evaluations_loss(split):
    made, model = trainer(), module()
    with pytest.raises(DivergenceError) as error:
        (made.validate if split == "dev" else made.test)(model, loader([batch(1), batch(2, value=1e30)]), verbose=False)
    assert str(error.value) == f"{split} set: the loss of m.json:21 is not finite (NaN or infinity)"


def one_of(batch, index):
    """One utterance of a batch."""
    kept = slice(index, index + 1)
    return batch._replace(
        **{name: value[kept] for name, value in batch._asdict().items() if isinstance(value, torch.Tensor | list)}
    )


@pytest.mark.parametrize("split", ["dev", "test"])
def test_where_steps_are_skipped_an_evaluation_has_the_mean_of_the_others(split, caplog):
    made, model = trainer(), module(NonFiniteGuard("skip"))
    measure = made.validate if split == "dev" else made.test
    expected = measure(model, loader([batch(1), one_of(batch(2, value=1e30), 0)]), verbose=False)[0][f"{split}_loss"]
    found = measure(model, loader([batch(1), batch(2, value=1e30)]), verbose=False)[0][f"{split}_loss"]
    assert found == pytest.approx(expected)
    assert (
        f"{split} set: the loss of m.json:21 is not finite (NaN or infinity); {split}_loss is the mean over the other 3"
        in caplog.messages
    )
    with pytest.raises(DivergenceError, match=f"{split} set: the loss of m.json:21 is not finite .*, and no other"):
        measure(model, loader([one_of(batch(2, value=1e30), 1)]), verbose=False)


def test_what_another_rank_has_seen_counts(monkeypatch):
    """Both ranks are asked; a rank that has seen nothing bad names what the others have."""
    guard = NonFiniteGuard("skip")
    guard._window = []
    asked = []
    made = SimpleNamespace(
        **{"world_size": 2, "global_step": 4, "current_epoch": 0, "is_global_zero": False},
        precision_plugin=object(),
        strategy=SimpleNamespace(reduce=lambda flag, reduce_op: asked.append((flag.item(), reduce_op)) or flag + 1),
    )

    def gather(of_ranks, mine):
        of_ranks[:] = [mine, [mine[0]._replace(samples=["m.json:7"])]]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    model = module()
    guard.on_train_batch_start(SimpleNamespace(accumulate_grad_batches=1), model, batch(1), 0)
    guard.on_before_backward(made, model, torch.tensor(1.0))
    with pytest.raises(DataError, match=r"^optimizer step 5 \(epoch 1\): samples .* in m\.json:7$"):
        NonFiniteGuard.passes(with_action(guard, "raise"), made, model)
    assert not with_action(guard, "skip").passes(made, model)
    assert asked == [(0.0, "sum")] * 2


def with_action(guard: NonFiniteGuard, action: str) -> NonFiniteGuard:
    guard.action = action
    return guard


def scaled(scale: float = 65536.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cuda", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


SCALED = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'", "ignore:.*CUDA is not available")


def overflowing(steps: int):
    """A module whose first gradients overflow, in so many steps."""
    model, seen = module(), []

    def overflow(gradient):
        seen.append(None)
        return gradient.fill_(INF) if len(seen) <= steps else gradient

    model.get_parameter(NAME).register_hook(overflow)
    return model


@SCALED
@pytest.mark.parametrize("action", ["raise", "skip"])
def test_a_gradscaler_that_skips_every_step_is_a_divergence(action):
    batches = [batch(i, size=1) for i in range(30)]
    model, guard, made = fit(batches, action, most=2, model=overflowing(22), plugins=[scaled()])  # it calibrates itself
    assert (made.global_step, guard.skipped) == (30, 0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    message = r"^23 optimizer steps in a row were skipped by the GradScaler, the last: optimizer step 23 \(epoch 1\): "
    with pytest.raises(
        DivergenceError, match=message + rf"the gradient of {NAME} is not finite .*, after m\.json:220;"
    ):
        fit(batches, action, most=2, model=overflowing(40), plugins=[scaled()])


def test_sizes_of_gradients():
    layer = torch.nn.Linear(2, 2)
    assert gradient_sizes(layer) == []
    layer.weight.grad = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    layer.bias.grad = torch.tensor([1.0, NAN])
    size, nan = gradient_sizes(layer)
    assert size == 3.0
    assert nan.isnan()
    layer.bias.grad = torch.tensor([1e30, 1.0])  # whose norm would overflow
    assert gradient_sizes(layer)[1] == torch.tensor(1e30)


def test_a_few_names_are_shown():
    assert shown(["a", "b", "a"]) == "a, b"
    assert shown(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    assert shown("abc", 2) == "a, b and 1 more"


def test_a_run_that_is_continued_goes_on_with_the_schedule_where_it_waited(tmp_path, recwarn):
    _, _, made = fit([batch(0), batch(1, value=NAN), batch(2)], "skip")
    made.save_checkpoint(tmp_path / "a.ckpt")
    guard = NonFiniteGuard("skip")
    resumed, model = trainer([guard], max_epochs=2), module(guard)
    resumed.fit(model, loader([batch(3), batch(4), batch(5)]), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert (resumed.global_step, guard.skipped) == (6, 1)
    scheduler = resumed.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 5
    assert not [str(w.message) for w in recwarn if "resumes" in str(w.message)]


@SCALED
def test_a_gradscaler_keeps_its_scale_where_the_loss_is_not_finite():
    """Its own overflows it sees itself; the guard leaves the step out before it is asked."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = NonFiniteGuard("skip")
    model = module(guard)
    made = trainer([guard], plugins=[MixedPrecision("16-mixed", "cuda", scaler=scaler)])
    made.fit(model, loader([batch(0), batch(1, value=NAN), batch(2)]))
    assert (guard.skipped, made.global_step, scaler.get_scale()) == (1, 3, 4.0)
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
