"""LayerMonitor: the right values at the right steps, one picture at the end, and nothing in between."""

import copy
import types

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_novograd.optim import Composite, NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.training.callbacks import METRICS, LayerMonitor, draw_layers


class Net(pl.LightningModule):
    def __init__(self, build):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.frozen, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        self.frozen.requires_grad_(False)
        self.build = build

    def forward(self, x):
        return self.second(self.frozen(self.first(x)).tanh())

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return self.build([p for p in self.parameters() if p.requires_grad])


class Recorded(Logger):
    name, version = "recorded", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("layer_") for name in metrics):
            self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass


NAMES = ["first.weight", "first.bias", "second.weight", "second.bias"]
BATCHES = list(torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(1)))


def novograd(params):
    return NovoGrad(params, lr=0.05, betas=(0.9, 0.5), weight_decay=0.01)


def fit(module, monitor, tmp_path, ckpt_path=None, **options):
    logger = Recorded()
    trainer = pl.Trainer(
        **{"max_epochs": 1, "callbacks": [monitor], **options},
        accelerator="cpu",
        logger=logger,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer, logger.rows


def test_values_are_those_of_a_plain_loop(tmp_path):
    module = Net(novograd)
    model = copy.deepcopy(module)
    _, rows = fit(module, LayerMonitor(every_n_steps=3), tmp_path, accumulate_grad_batches=2)

    layers = dict(zip(NAMES, (p for p in model.parameters() if p.requires_grad), strict=True))
    optimizer = novograd(list(layers.values()))
    expected = []
    for step in range(1, 7):
        for batch in BATCHES[2 * step - 2 : 2 * step]:
            (model(batch).square().mean() / 2).backward()
        before = {name: p.detach().clone() for name, p in layers.items()}
        optimizer.step()
        if step % 3 == 0:
            row = {}
            for name, p in layers.items():
                row[f"layer_grad_norm/{name}"] = float(p.grad.norm())
                row[f"layer_second_moment/{name}"] = float(optimizer.state[p]["exp_avg_sq"])
                row[f"layer_update_ratio/{name}"] = float((p.detach() - before[name]).norm() / before[name].norm())
            expected.append((step, row))
        optimizer.zero_grad()
    assert [step for step, _ in rows] == [3, 6]
    for (_, row), (_, wanted) in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("around", ["all", "a part"])
def test_clip_fraction_counts_all_steps_since_the_last_record(tmp_path, around):
    def build(params):
        if around == "a part":
            return Composite([LARC(torch.optim.SGD(params[:2], lr=0.1)), torch.optim.SGD(params[2:], lr=0.1)])
        return LARC(torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "larc": False}], lr=0.1))

    module = Net(build)
    counted = []

    def note(optimizer, args, kwargs):
        # clipped in steps 1, 2 and 5 only; this runs before the monitor's own hook
        clipped = len(counted) in (0, 1, 4)
        counted.append(clipped)
        for group in optimizer.param_groups:
            group["larc_trust_coefficient"] = 1e-6 if clipped else 1e6

    class Watched(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_pre_hook(note)
            return optimizer

    module = Watched(build)
    _, rows = fit(module, LayerMonitor(every_n_steps=4), tmp_path)
    fractions = [{k: v for k, v in row.items() if "clip" in k} for _, row in rows]
    layers = [f"layer_larc_clip_fraction/{name}" for name in NAMES[:2]]
    assert fractions == [dict.fromkeys(layers, value) for value in (0.5, 0.25, 0.0)]


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_what_an_optimizer_does_not_have_is_left_out(tmp_path, build):
    monitor = LayerMonitor(every_n_steps=6)
    _, rows = fit(Net(lambda params: build(params, lr=0.1)), monitor, tmp_path)
    assert {name.split("/")[0] for _, row in rows for name in row} == {"layer_grad_norm", "layer_update_ratio"}
    assert all(0 < value < 1e3 for _, row in rows for value in row.values())


class TwoOptimizers(Net):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.SGD(self.second.parameters(), lr=0.1)]


def test_every_optimizer_of_manual_optimization_is_recorded(tmp_path):
    _, rows = fit(TwoOptimizers(None), LayerMonitor(every_n_steps=5), tmp_path)
    assert len(rows) == 2
    for _, row in rows:
        assert {name for name in row if "ratio" in name} == {f"layer_update_ratio/{name}" for name in NAMES}


def test_a_resumed_run_has_the_records_of_an_uninterrupted_one(tmp_path):
    whole = LayerMonitor(every_n_steps=2)
    fit(Net(novograd), whole, tmp_path, max_epochs=2)
    trainer, _ = fit(Net(novograd), LayerMonitor(every_n_steps=2), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = LayerMonitor(every_n_steps=2)
    fit(Net(novograd), resumed, tmp_path, ckpt_path=tmp_path / "last.ckpt", max_epochs=2)
    assert resumed.names == whole.names == NAMES
    assert resumed.steps == whole.steps == list(range(2, 25, 2))
    torch.testing.assert_close(resumed.records, whole.records, equal_nan=True)


def test_records_follow_the_names_of_the_layers(tmp_path):
    monitor = LayerMonitor(every_n_steps=100)
    gone_and_kept = torch.tensor([[1.0, 2.0]] * len(METRICS))
    monitor.load_state_dict({"names": ["gone", "second.bias"], "steps": [0], "records": [gone_and_kept]})
    fit(Net(novograd), monitor, tmp_path)
    expected = torch.tensor([[torch.nan] * 3 + [2.0]] * len(METRICS))
    torch.testing.assert_close(monitor.records, [expected], equal_nan=True)


class Thawing(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.frozen.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.frozen.parameters())})


def test_layers_that_are_thawed_appear_from_then_on(tmp_path):
    monitor = LayerMonitor(every_n_steps=6)
    module = Net(novograd)
    _, rows = fit(module, monitor, tmp_path, max_epochs=2, callbacks=[monitor, Thawing()])
    assert monitor.steps == [6, 12, 18, 24]
    assert monitor.names == [name for name, _ in module.named_parameters()]
    column = monitor.names.index("frozen.weight")
    assert [record[0, column].isnan().item() for record in monitor.records] == [True, True, False, False]
    assert ["layer_grad_norm/frozen.weight" in metrics for _, metrics in rows] == [False, False, True, True]


def test_another_fit_begins_another_record(tmp_path):
    monitor = LayerMonitor(every_n_steps=6)
    for _ in range(2):
        fit(Net(novograd), monitor, tmp_path)
    assert monitor.steps == [6, 12]
    assert len(monitor.records) == 2


def test_the_picture_is_in_the_folder_and_hooks_are_gone(tmp_path):
    folder = tmp_path / "new" / "folder"
    trainer, _ = fit(Net(novograd), LayerMonitor(every_n_steps=3, folder=folder), tmp_path)
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_a_run_without_a_record_says_so_and_draws_nothing(tmp_path, caplog):
    fit(Net(novograd), LayerMonitor(every_n_steps=13), tmp_path)
    assert "fewer than every_n_steps=13" in caplog.text
    assert not (tmp_path / "layers.png").exists()


@pytest.mark.parametrize("count", [1, 3], ids=["one record", "three records"])
def test_pictures_take_zeros_infinities_and_gaps(tmp_path, count):
    records = torch.rand(count, len(METRICS), 5)
    records[0, :, 0], records[0, :, 1], records[0, :, 2] = 0.0, torch.inf, torch.nan
    records[:, 1] = torch.nan
    draw_layers([f"layer{i}" for i in range(5)], [10 * (i + 1) for i in range(count)], records, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_long_runs_keep_a_bounded_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_novograd.training.callbacks.layer_monitor._MAX_RECORDS", 4)
    monitor = LayerMonitor(every_n_steps=1)
    fit(Net(novograd), monitor, tmp_path)
    assert len(monitor.records) == len(monitor.steps) <= 4
    assert monitor.steps == sorted(monitor.steps)
    assert monitor.steps[-1] == 12


# --- cost and ranks --------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


def started(monitor, module, optimizer, **attributes):
    trainer = types.SimpleNamespace(
        **{"optimizers": [optimizer], "global_step": 0, "is_global_zero": True, "loggers": [Recorded()], **attributes}
    )
    monitor.on_train_start(trainer, module)
    return trainer


def test_between_records_not_a_single_tensor_operation_runs():
    module = Net(novograd)
    optimizer = LARC(novograd([p for p in module.parameters() if p.requires_grad]))
    monitor = LayerMonitor(every_n_steps=10)
    trainer = started(monitor, module, optimizer)
    for trainer.global_step in range(9):
        module.training_step(BATCHES[0], 0).backward()
        optimizer.step()
        with Operations() as operations:
            monitor.on_before_optimizer_step(trainer, module, optimizer)
            monitor._after_step(optimizer, (), {})
            monitor.on_train_batch_end(trainer, module, None, None, 0)
        assert operations.calls == []


def test_measuring_fetches_nothing_from_the_device():
    # the meta device has no values: whoever asks for one gets an exception
    module = Net(novograd).to("meta")
    optimizer = LARC(torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1))
    monitor = LayerMonitor(every_n_steps=1)
    trainer = started(monitor, module, optimizer)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.empty_like(p)
    monitor.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    [(layers, values)] = monitor._measured
    assert values.is_meta
    assert len(layers) == len(NAMES)


def test_what_is_kept_between_records_does_not_grow_with_the_steps():
    module = Net(novograd)
    params = [p for p in module.parameters() if p.requires_grad]
    optimizer = LARC(torch.optim.SGD(params, lr=0.1), trust_coefficient=0.5)
    monitor = LayerMonitor(every_n_steps=1001)
    trainer = started(monitor, module, optimizer)
    clipped, sizes = torch.zeros(len(NAMES)), set()
    for trainer.global_step in range(1001):
        for index, p in enumerate(params):
            p.grad = torch.ones_like(p) * (1e3 if trainer.global_step % (index + 2) else 1e-9)
        monitor.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        factors = {id(p): f for layers, found in optimizer.factors for p, f in zip(layers, found, strict=True)}
        clipped += torch.tensor([float(factors[id(p)] < 1) for p in params])
        sizes.add(len(monitor._factors))
    assert max(sizes) <= 64 * len(optimizer.factors)
    monitor.on_train_batch_end(trainer, module, None, None, 0)
    torch.testing.assert_close(monitor.records[0][3], clipped / 1001)
    assert 0 < monitor.records[0][3].min() < monitor.records[0][3].max() < 1
    assert monitor._factors == []
    monitor.on_before_optimizer_step(trainer, module, optimizer)
    with torch.device("meta"):  # nothing goes to torch's default device
        optimizer.step()
        monitor.on_train_batch_end(trainer, module, None, None, 0)
    assert monitor.records[1][3].isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_norms_are_unscaled_and_skipped_steps_make_no_record(fused, tmp_path):
    """A fused optimizer unscales in its own step, and decides there whether it makes one."""
    from lightning.pytorch.plugins import MixedPrecision

    class Overflows(Net):
        def on_after_backward(self):
            if self.trainer.global_step == 3:
                self.first.bias.grad.fill_(torch.inf)

    def records(fused, **options):
        monitor = LayerMonitor(every_n_steps=1)
        fit(Overflows(lambda params: NovoGrad(params, lr=0.05, fused=fused)), monitor, tmp_path, **options)
        return dict(zip(monitor.steps, monitor.records, strict=True))

    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    found = records(fused, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    expected = records(False)
    assert 4 in expected
    assert 4 not in found
    for step in (1, 2, 3):  # float16 has three digits
        torch.testing.assert_close(found[step], expected[step], rtol=1e-2, atol=1e-4, equal_nan=True)


def test_a_step_that_a_grad_scaler_skips_makes_no_record():
    module = Net(novograd)
    optimizer = novograd([p for p in module.parameters() if p.requires_grad])
    monitor = LayerMonitor(every_n_steps=1)
    trainer = started(monitor, module, optimizer)
    for due, skipped in ((1, True), (2, False)):
        trainer.global_step = due - 1
        module.training_step(BATCHES[0], 0).backward()
        monitor.on_before_optimizer_step(trainer, module, optimizer)
        if not skipped:
            optimizer.step()
        trainer.global_step = due
        monitor.on_train_batch_end(trainer, module, None, None, 0)
    assert monitor.steps == [2]


def test_a_step_of_another_optimizer_is_not_measured():
    """A GAN's: the generator's step was announced, and the critic's comes first, or its own was skipped."""
    module = Net(novograd)
    announced, other = (NovoGrad(part.parameters(), lr=0.1) for part in (module.first, module.second))
    monitor = LayerMonitor(every_n_steps=1)
    trainer = started(monitor, module, announced)
    trainer.optimizers.append(other)
    monitor.on_train_start(trainer, module)
    module.training_step(BATCHES[0], 0).backward()
    monitor.on_before_optimizer_step(trainer, module, announced)
    other.step()
    assert monitor._measured == []
    announced.step()
    [(layers, values)] = monitor._measured
    assert list(map(id, layers)) == [id(p) for p in module.first.parameters()]
    assert (values[2] > 0).all()


def test_the_state_is_not_shared_with_the_next_run():
    monitor = LayerMonitor(every_n_steps=1)
    monitor.load_state_dict(state := {"names": ["a"], "steps": [1], "records": [torch.zeros(len(METRICS), 1)]})
    monitor.steps.append(2)
    monitor.records.append(torch.ones(len(METRICS), 1))
    monitor.names.append("b")
    assert (state["names"], state["steps"], len(state["records"])) == (["a"], [1], 1)


def test_other_ranks_measure_and_do_not_write(tmp_path):
    module = Net(novograd)
    optimizer = novograd([p for p in module.parameters() if p.requires_grad])
    monitor = LayerMonitor(every_n_steps=1, folder=tmp_path)
    trainer = started(monitor, module, optimizer, is_global_zero=False)
    module.training_step(BATCHES[0], 0).backward()
    monitor.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    monitor.on_train_batch_end(trainer, module, None, None, 0)
    monitor.on_fit_end(trainer, module)
    assert len(monitor.records) == 1
    assert trainer.loggers[0].rows == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every_n_steps", [0, -1, 2.5, None])
def test_an_impossible_interval_is_refused(every_n_steps):
    with pytest.raises(ValueError, match=f"every_n_steps: {every_n_steps!r}; allowed: a positive integer"):
        LayerMonitor(every_n_steps=every_n_steps)
