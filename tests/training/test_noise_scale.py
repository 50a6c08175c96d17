"""GradientNoiseScale: the estimates of a plain loop, from accumulation, ranks and loss scales alike."""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from tiny_fit import trainer

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch import gradient_noise
from lightning_novograd.training.callbacks import GradientNoiseScale, LayerMonitor, draw_layers, layer_monitor

BATCHES = list(torch.randn(14, 5, 3, generator=torch.Generator().manual_seed(1)))


class Net(pl.LightningModule):
    """A net with one normalization layer."""

    def __init__(self, lr=0.1, optimizer=torch.optim.SGD, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1)
        self.build = lambda params: optimizer(params, lr=lr, **options)
        self.hooks = []

    def loss(self, batch):
        return (self.last(self.norm(self.first(batch)).tanh()) - batch[:, :1]).square().mean()

    def training_step(self, batch, batch_idx):
        self.hooks.append(sum(len(p._backward_hooks or ()) for p in self.parameters()))
        return self.loss(batch)

    def configure_optimizers(self):
        return self.build(self.parameters())


class Dropping(Net):
    """Leaves its normalization layer out for some batches, as stochastic depth does."""

    def loss(self, batch):
        hidden = self.first(batch)
        return (self.last((self.norm(hidden) if batch.sum() > 0 else hidden).tanh()) - batch[:, :1]).square().mean()


class Recorded(Logger):
    name, version = "recorded", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, {name: v for name, v in metrics.items() if name.startswith("noise_scale/")}))

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(net, callback, folder, batches=BATCHES, ckpt_path=None, callbacks=(), **options):
    run = trainer(**{"max_epochs": 1, **options}, callbacks=[callback, *callbacks], default_root_dir=folder)
    run.fit(net, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return run


def mixed_precision():
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))


def expected(net, windows, named):
    """The estimates of each window, from the batches that use the parameters, at the weights that the net has then."""
    params = {name: p for name, p in net.named_parameters() if name.startswith(named)}
    optimizer = net.build(net.parameters())
    noises = []
    for window in windows:
        parts, sizes = [], []
        for batch in window:
            grads = torch.autograd.grad(net.loss(batch), list(params.values()), allow_unused=True)
            if grads[0] is not None:
                parts.append(torch.cat([grad.flatten() for grad in grads]))
                sizes.append(len(batch))
        inverse = sum(1 / size for size in sizes)
        if len(parts) > 1:
            small = sum(float(part.square().sum()) for part in parts) / len(parts)
            large = float((sum(parts) / len(parts)).square().sum())
            noise = gradient_noise(small, large, len(parts) / inverse, len(parts) ** 2 / inverse)
            noises.append((noise.sq_gradient, noise.trace, len(parts) ** 2 / inverse))
        optimizer.zero_grad()
        sum(net.loss(batch) / len(window) for batch in window).backward()
        optimizer.step()
    return noises


def measured(callback):
    return [(record.sq_gradient, record.trace, record.batch_size) for record in callback.records]


def in_windows(batches, length):
    return [batches[i : i + length] for i in range(0, len(batches), length)]


@pytest.mark.parametrize(
    ("match", "named"), [("norm", "norm"), ("*", ""), (["last.*", "first.bias"], ("last", "first.bias"))]
)
def test_estimates_are_those_of_a_plain_loop(match, named, tmp_path):
    callback = GradientNoiseScale(every_n_steps=1, match=match)
    fit(Net().double(), callback, tmp_path, [batch.double() for batch in BATCHES[:12]], accumulate_grad_batches=4)
    windows = in_windows([batch.double() for batch in BATCHES[:12]], 4)
    assert [record.step for record in callback.records] == [1, 2, 3]
    assert measured(callback) == [pytest.approx(row, rel=1e-9) for row in expected(Net().double(), windows, named)]


def test_micro_batches_that_do_not_use_the_parameters_do_not_count(tmp_path):
    callback = GradientNoiseScale(every_n_steps=1)
    batches = [batch.double() for batch in BATCHES[:12]]
    fit(Dropping().double(), callback, tmp_path, batches, accumulate_grad_batches=3)
    rows = expected(Dropping().double(), in_windows(batches, 3), "norm")
    assert measured(callback) == [pytest.approx(row, rel=1e-9) for row in rows]
    assert 0 < len(rows) < 4


def test_what_is_logged(tmp_path):
    callback, logger, net = GradientNoiseScale(every_n_steps=2, smoothing=0.5), Recorded(), Net()
    fit(net, callback, tmp_path, accumulate_grad_batches=2, logger=logger)
    assert [step for step, values in logger.rows if values] == [2, 4, 6]
    for (_, values), record in zip([row for row in logger.rows if row[1]], callback.records, strict=True):
        assert values["noise_scale/sq_gradient"] == record.sq_gradient
        assert values["noise_scale/trace"] == record.trace
        assert values.get("noise_scale/running", record.running.mean.scale) == pytest.approx(
            record.running.mean.scale, nan_ok=True
        )
    assert any("noise_scale/running" in values for _, values in logger.rows)
    # only what is measured is looked at, and nothing stays behind
    assert net.hooks == [0, 0, 2, 2] * 3 + [0, 0]
    assert not any(p._backward_hooks for p in net.parameters())
    assert (tmp_path / "noise_scale.png").stat().st_size > 1000


@pytest.mark.parametrize("first", [False, True])
def test_the_picture_of_the_layers_has_it_too(tmp_path, first, monkeypatch):
    noise, monitor = GradientNoiseScale(every_n_steps=1), LayerMonitor(every_n_steps=2)
    drawn = []
    monkeypatch.setattr(layer_monitor, "draw_layers", lambda *args: (drawn.append(args[-1]), draw_layers(*args)))
    both = [noise, monitor] if first else [monitor, noise]
    fit(Net(), both[0], tmp_path, accumulate_grad_batches=2, callbacks=[both[1]])
    assert drawn == [noise.curves()]
    assert drawn[0].steps == [record.step for record in noise.records]
    assert drawn[0].scale == [pytest.approx(record.running.mean.scale, nan_ok=True) for record in noise.records]
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_micro_batches_of_different_sizes_and_windows_that_are_not_full(tmp_path):
    """Lightning steps at the end of an epoch with the gradients that it has, divided as if all had come."""
    batches = [batch[: 1 + i % 5] for i, batch in enumerate(BATCHES[:11])]
    callback = GradientNoiseScale(every_n_steps=1)
    fit(Net(lr=0.0), callback, tmp_path, batches, accumulate_grad_batches=4)
    rows = expected(Net(lr=0.0), in_windows(batches, 4), "norm")
    assert measured(callback) == [pytest.approx(row, rel=1e-4) for row in rows]
    assert len(rows) == 3
    single = GradientNoiseScale(every_n_steps=1)
    fit(Net(lr=0.0), single, tmp_path, batches[:9], accumulate_grad_batches=4)
    assert measured(single) == measured(callback)[:2]  # the ninth is alone


def test_the_size_of_a_batch_may_be_said(tmp_path):
    callback = GradientNoiseScale(every_n_steps=1, batch_size=lambda batch: 7)
    fit(Net(), callback, tmp_path, accumulate_grad_batches=2)
    assert [record.batch_size for record in callback.records] == pytest.approx([14] * 7)


@pytest.mark.parametrize("options", [{}, {"optimizer": torch.optim.AdamW, "fused": True}], ids=["sgd", "fused adamw"])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_loss_scales_are_taken_out(options, tmp_path):
    plain, scaled = GradientNoiseScale(every_n_steps=1), GradientNoiseScale(every_n_steps=1)
    fit(Net(lr=1e-8, **options), plain, tmp_path, accumulate_grad_batches=2)
    fit(Net(lr=1e-8, **options), scaled, tmp_path, accumulate_grad_batches=2, plugins=[mixed_precision()])
    assert len(measured(scaled)) == 7
    assert measured(scaled) == [pytest.approx(row, rel=0.03, abs=1e-3) for row in measured(plain)]


def test_a_step_with_an_overflow_is_left_out(tmp_path):
    batches = [*BATCHES[:2], BATCHES[2] * float("inf"), BATCHES[3], *BATCHES[4:6]]
    callback = GradientNoiseScale(every_n_steps=1)
    fit(Net(lr=0.0), callback, tmp_path, batches, accumulate_grad_batches=2, plugins=[mixed_precision()])
    assert [record.step for record in callback.records] == [1, 3]


def test_known_noise_of_a_run(tmp_path):
    """Linear regression at w: |G|^2 = |w|^2 and tr(Sigma) = (d + 1)|w|^2 + d s^2, here 9 * 2 + 8 * 0.25."""
    generator = torch.Generator().manual_seed(3)

    class Linear(Net):
        def __init__(self):
            super().__init__(lr=0.0)
            self.last = torch.nn.Linear(8, 1, bias=False)
            torch.nn.init.constant_(self.last.weight, 0.5)

        def loss(self, batch):
            return (self.last(batch[:, :8]) - 0.5 * batch[:, 8:]).square().mean() / 2

    callback = GradientNoiseScale(every_n_steps=1, match="last.weight", smoothing=0.999)
    batches = list(torch.randn(1200, 4, 9, generator=generator))
    fit(Linear(), callback, tmp_path, batches, accumulate_grad_batches=4)
    assert callback.running.mean.scale == pytest.approx((9 * 2 + 8 * 0.25) / 2, rel=0.1)


def test_resumed_runs_measure_what_uninterrupted_ones_do(tmp_path):
    whole, half, resumed = (GradientNoiseScale(every_n_steps=2) for _ in range(3))
    options = {"accumulate_grad_batches": 2}
    fit(Net(), whole, tmp_path, max_epochs=2, **options)
    run = fit(Net(), half, tmp_path, max_epochs=1, **options)
    run.save_checkpoint(tmp_path / "half.ckpt")
    fit(Net(), resumed, tmp_path, max_epochs=2, ckpt_path=tmp_path / "half.ckpt", **options)
    assert len(half.records) == 3
    assert resumed.records == whole.records
    # another run with the same callback begins anew
    fit(Net(), resumed, tmp_path, max_epochs=2, **options)
    assert resumed.records == whole.records


def test_long_runs_keep_a_bounded_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_novograd.training.callbacks.noise_scale._MAX_RECORDS", 4)
    every, thinned = (GradientNoiseScale(every_n_steps=1) for _ in range(2))
    fit(Net(), thinned, tmp_path, accumulate_grad_batches=2)
    monkeypatch.undo()
    fit(Net(), every, tmp_path, accumulate_grad_batches=2)
    assert [record.step for record in thinned.records] == [1, 5, 7]
    assert thinned.running == every.running


def test_layers_that_are_thawed_are_looked_at(tmp_path):
    class Thaws(Net):
        def on_train_epoch_start(self):
            self.norm.weight.requires_grad_(self.current_epoch > 0)

    net = Thaws()
    fit(net, GradientNoiseScale(every_n_steps=1), tmp_path, BATCHES[:2], accumulate_grad_batches=2, max_epochs=3)
    assert net.hooks == [1, 1, 2, 2, 2, 2]


def test_one_process_without_accumulation_is_told(tmp_path, caplog):
    callback = GradientNoiseScale(every_n_steps=1)
    with caplog.at_level("WARNING"):
        fit(Net(), callback, tmp_path)
    said = [message for message in caplog.messages if "noise scale" in message]
    assert len(said) == 1
    assert "set accumulate_grad_batches to 2 or more" in said[0]
    assert not callback.records
    assert not (tmp_path / "noise_scale.png").exists()


def test_manual_optimization_is_told(tmp_path, caplog):
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))

    with caplog.at_level("WARNING"):
        fit(Manual(), GradientNoiseScale(every_n_steps=1), tmp_path)
    assert "under manual optimization" in " ".join(caplog.messages)


def test_a_model_without_such_layers_is_refused(tmp_path):
    net = Net()
    net.norm = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"GradientNoiseScale.match: 'norm' matches no parameter"):
        fit(net, GradientNoiseScale(), tmp_path)


@pytest.mark.parametrize(
    "arguments", [{"every_n_steps": 0}, {"every_n_steps": 1.5}, {"smoothing": 1.0}, {"smoothing": -0.1}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=f"Invalid {next(iter(arguments))}.*allowed"):
        GradientNoiseScale(**arguments)


@pytest.mark.parametrize(
    ("net", "accumulation"),
    [(Dropping, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(Net, 1), (Net, 2), (Dropping, 1)])],
)
def test_ranks_are_micro_batches_too(net, accumulation, tmp_path):
    script = Path(__file__).parent / "ddp_noise_scale.py"
    command = [sys.executable, script, str(accumulation), net.__name__]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines() if line.startswith("measured")]
    # rank r gets batches r, r + 2, ...
    windows = in_windows(BATCHES[:12], 2 * accumulation)
    rows = expected(net(), windows, "norm")
    assert (len(rows) < len(windows)) == (net is Dropping)
    assert len(lines) == 2 * len(rows) > 0
    for index, row in enumerate(rows):
        for line in (line for line in lines if line[1] == str(index)):
            assert [float(number) for number in line[2:]] == pytest.approx(row, rel=1e-4)
