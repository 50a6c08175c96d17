"""The length that a schedule gets against the number of optimizer steps that a fit makes; resuming is left alone."""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from tiny_fit import MeasuredStream, Net, Numbers, Stream, loader, trainer
from torch.utils.data import DataLoader

from lightning_novograd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*(dirpath has changed|callbacks used to create).*"
)
BLOCK = {"name": "sgd", "lr": 0.1, "sched": {"name": "WarmupAnnealing"}}


def cosine(**changes):
    return {**BLOCK, "sched": {"name": "cosine", **changes}}


def fitted(settings, data=None, block=BLOCK):
    """(length of the schedule, optimizer steps that were made, the module)."""
    net = Net(block)
    run = trainer(**settings)
    run.fit(net, loader() if data is None else data)
    return run.lr_scheduler_configs[0].scheduler.arguments["max_steps"], len(net.lrs), net


# ---------------------------------------------------------------------------------------------- the table

DATA = {
    "7 samples": lambda: DataLoader(Numbers(7), batch_size=2),
    "7 samples, drop_last": lambda: DataLoader(Numbers(7), batch_size=2, drop_last=True),
    "stream with length": lambda: DataLoader(MeasuredStream(7), batch_size=2),
    "stream": lambda: DataLoader(Stream(7), batch_size=2),
}
ACCUMULATION = {"no accumulation": 1, "accumulation 2": 2, "epoch shorter than accumulation": 5}
LIMITS = {"all batches": {}, "3 batches": {"limit_train_batches": 3}, "half": {"limit_train_batches": 0.5}}
ENDS = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_steps": 5},
    "epochs before steps": {"max_epochs": 2, "max_steps": 50},
    "steps before epochs": {"max_epochs": 4, "max_steps": 2},
}


def known(data, accumulation, limit, end):
    """Lightning refuses a share of a stream; an epoch of a stream has no length (see below)."""
    return data != "stream" or (limit != "half" and "epochs" not in end)


@pytest.mark.parametrize(
    ("data", "accumulation", "limit", "end"),
    [
        pytest.param(*row, id=", ".join(row))
        for row in itertools.product(DATA, ACCUMULATION, LIMITS, ENDS)
        if known(*row)
    ],
)
def test_the_schedule_is_as_long_as_the_fit(data, accumulation, limit, end):
    settings = {"accumulate_grad_batches": ACCUMULATION[accumulation], **LIMITS[limit], **ENDS[end]}
    length, steps, net = fitted(settings, DATA[data]())
    assert length == steps
    assert net.lrs[-1] == pytest.approx(0.1 / steps)  # WarmupAnnealing is linear: one more step would reach 0


@pytest.mark.parametrize("limit", [3, 5])
def test_a_stream_of_limited_batches_has_a_length(limit):
    length, steps, _ = fitted({"max_epochs": 2, "limit_train_batches": limit}, DATA["stream"]())
    assert (length, steps) == (2 * limit, 2 * min(limit, 4))  # what a stream does not have, nobody can count


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"overfit_batches": 2, "max_epochs": 3}, id="overfit_batches"),
        pytest.param({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, id="reloaded loaders"),
        pytest.param({"max_epochs": 3, "val_check_interval": 2}, id="validation in between"),
        pytest.param(
            {"max_epochs": 4, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 3, 3: 2})]},
            id="accumulation that changes",
        ),
    ],
)
def test_other_settings_of_the_trainer(settings):
    length, steps, _ = fitted(settings)
    assert length == steps


@pytest.mark.parametrize("epochs", [2, 5])
def test_a_schedule_of_its_own_number_of_epochs(epochs):
    length, steps, _ = fitted({"max_epochs": 4, "accumulate_grad_batches": 3}, block=cosine(max_epochs=epochs))
    assert (length, steps) == (epochs * 2, 8)


def test_epochs_of_the_schedule_in_a_run_counted_in_steps():
    length, steps, _ = fitted({"max_steps": 6}, block=cosine(max_epochs=3))
    assert (length, steps) == (12, 6)


def test_epochs_of_the_schedule_where_the_accumulation_changes():
    changing = {"max_epochs": 4, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 3, 3: 2})]}
    for epochs, expected in ((1, 4), (2, 4 + 2), (4, 4 + 2 + 2 + 2)):
        length, steps, _ = fitted(changing, block=cosine(max_epochs=epochs))
        assert (length, steps) == (expected, 10)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 50, "max_steps": 8}, 2),
        ({"max_epochs": 50, "max_steps": 9}, 3),
        ({"max_epochs": 2, "max_steps": 50}, 2),
        ({"max_steps": 8}, 2),
        ({"max_epochs": 50, "max_steps": 5, "accumulate_grad_batches": 3}, 3),
        pytest.param(
            {"max_steps": 7, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]}, 3, id="changing accumulation"
        ),
    ],
    ids=str,
)
def test_a_schedule_stepped_per_epoch_is_as_long_as_the_fit(settings, epochs):
    length, _, net = fitted(settings, block=cosine(name="WarmupAnnealing", interval="epoch"))
    assert length == len(set(net.lrs)) == epochs
    assert net.lrs[-1] == pytest.approx(0.1 / epochs)


def test_a_combined_loader():
    from lightning.pytorch.utilities import CombinedLoader

    class Pair(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    net = Pair(BLOCK)
    run = trainer(max_epochs=2)
    run.fit(net, CombinedLoader({"a": loader(8), "b": loader(6)}, "min_size"))
    assert run.lr_scheduler_configs[0].scheduler.arguments["max_steps"] == len(net.lrs) == 6


# ---------------------------------------------------------------------------------------------- no length


@pytest.mark.parametrize(
    ("settings", "data", "why"),
    [
        ({"max_epochs": 2}, "stream", "the training data has no length"),
        ({"max_epochs": -1}, "7 samples", r"Trainer\(max_epochs=-1\) without max_steps runs for ever"),
    ],
    ids=["stream", "for ever"],
)
def test_a_length_that_cannot_be_known_is_an_error(settings, data, why):
    with pytest.raises(ConfigError, match=why) as caught:
        fitted(settings, DATA[data]())
    assert caught.value.path == "optim.sched.max_steps"


def test_a_schedule_per_epoch_needs_no_length_of_the_stream():
    block = {**BLOCK, "sched": {"name": "WarmupAnnealing", "interval": "epoch"}}
    length, steps, net = fitted({"max_epochs": 3}, DATA["stream"](), block)
    assert (length, steps) == (3, 12)
    assert net.lrs == pytest.approx([0.1] * 4 + [0.2 / 3] * 4 + [0.1 / 3] * 4)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ("step", "5 optimizer steps: Trainer(max_steps=5)"),
        ("epoch", "2 epochs: Trainer(max_steps=5), epochs of 4 batch"),
    ],
)
def test_where_a_length_by_max_steps_comes_from(interval, said, caplog):
    per_interval = {**BLOCK, "sched": {"name": "WarmupAnnealing", "interval": interval}}
    with caplog.at_level("INFO", "lightning_novograd"):
        fitted({"max_steps": 5, "max_epochs": 9}, block=per_interval)
    (line,) = [record.getMessage() for record in caplog.records if "Schedule" in record.getMessage()]
    assert said in line
    assert ("epochs of" in line) == (interval == "epoch")


def test_the_epochs_of_a_stream_cannot_be_known():
    with pytest.raises(ConfigError, match=r"Trainer\(max_steps=5\), and the training data has no length") as caught:
        fitted({"max_steps": 5}, DATA["stream"](), cosine(interval="epoch"))
    assert caught.value.path == "optim.sched.max_epochs"


def test_a_warmup_longer_than_the_run_names_both_lengths():
    with pytest.raises(ConfigError) as caught:
        fitted({"max_epochs": 3, "accumulate_grad_batches": 2}, block=cosine(warmup_steps=100))
    assert caught.value.path == "optim.sched.warmup_steps"
    for words in (
        "100 warmup steps",
        "the run has 6 optimizer steps",
        "3 epochs x 4 batches / accumulate_grad_batches=2",
    ):
        assert words in caught.value.problem


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_dev_run": True},
        {"fast_dev_run": 3},
        {"max_epochs": 0},
        {"max_steps": 0},
        {"limit_train_batches": 0, "max_epochs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "sched",
    [
        {"name": "cosine", "warmup_steps": 100, "max_epochs": 2},
        {"name": "cosine", "warmup_steps": 2_000_000, "constant_steps": 1},
        {"name": "NoamHoldAnnealing", "warmup_ratio": 0.1},
        {"name": "PolyDecay", "begin_decay_at": 10},
        {"name": "CosineDecay", "begin_decay_at": 10, "warmup_steps": 5},
        {"name": "WarmupHoldPolicy", "warmup_steps": 5, "hold_ratio": 0.5},
        {"name": "WarmupAnnealing", "interval": "epoch", "warmup_steps": 2},
        {"name": "T5InverseSquareRootAnnealing", "constant_steps": 10},
        {
            "name": "SequentialLR",
            "milestones": [2_000_000],
            "schedulers": [{"name": "warmup"}, {"name": "cosine", "warmup_steps": 3_000_000}],
        },
        {"name": "StepLR", "step_size": 3, "warmup_epochs": 5},
        {"name": "ExponentialLR", "gamma": 0.9, "interval": "step", "warmup_epochs": 2},
        {"name": "MultiStepLR", "milestones": [3], "interval": "step", "warmup_steps": 2_000_000},
    ],
    ids=lambda sched: sched["name"],
)
def test_runs_that_only_try_the_code_take_any_schedule(settings, sched):
    net = Net({**BLOCK, "sched": sched})
    trainer(**settings).fit(net, loader())
    assert len(net.lrs) == int(settings.get("fast_dev_run", 0))


def test_data_is_not_loaded_when_the_length_is_known_without():
    class Counted(Net):
        loaded = 0

        def train_dataloader(self):
            self.loaded += 1
            return loader()

        def configure_optimizers(self):
            built = super().configure_optimizers()
            self.loaded_for_length = self.loaded
            return built

    for settings, block, times in (
        ({"max_steps": 3}, BLOCK, 0),
        ({"max_epochs": 1}, cosine(max_steps=9), 0),
        ({"max_epochs": 1}, {"name": "sgd"}, 0),
        ({"max_epochs": 1}, BLOCK, 1),
    ):
        net = Counted(block)
        trainer(**settings).fit(net)
        assert (net.loaded_for_length, net.loaded) == (times, 1)


# ---------------------------------------------------------------------------------------------- resume


class Stateful:
    """A loader that knows where it is, as torchdata's StatefulDataLoader does."""

    def __init__(self, size=6):
        self.size, self.position, self.start = size, 0, 0

    def __len__(self):
        return self.size

    def __iter__(self):
        start, self.start = self.start, 0
        for index in range(start, self.size):
            self.position = (index + 1) % self.size  # the next epoch's beginning, after the last batch
            yield torch.full((1, 3), float(index))

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.start = state["position"]


def steps_of(folder, settings, ckpt=None, data=Stateful, block=BLOCK):
    net = Net(block)
    save = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    run = trainer(enable_checkpointing=True, callbacks=[save], **settings)
    run.fit(net, data(), ckpt_path=ckpt)
    return net


@pytest.mark.parametrize("settings", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 17}], ids=["epochs", "steps"])
@pytest.mark.parametrize("ckpt", ["step=4", "step=8", "step=12"])
def test_a_stateful_loader_and_the_schedule_resume_at_their_place(ckpt, settings, tmp_path):
    whole = steps_of(tmp_path, settings)
    done = int(ckpt.removeprefix("step="))
    resumed = steps_of(tmp_path / "again", settings, tmp_path / f"{ckpt}.ckpt")
    assert resumed.seen == whole.seen[done:]
    assert resumed.lrs == whole.lrs[done:]
    assert len(whole.seen) == settings.get("max_steps", 18)


def test_the_loader_would_lose_its_place_if_the_trainer_were_simply_asked(tmp_path):
    """Lightning issue 20550. When this fails, Lightning has mended it and `_batches_per_epoch` can be simplified."""

    class Naive(Net):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 18
            return super().configure_optimizers()

    steps_of(tmp_path, {"max_epochs": 3})
    net = Naive({**BLOCK, "sched": {"name": "WarmupAnnealing", "max_steps": 18}})
    trainer(max_epochs=3).fit(net, Stateful(), ckpt_path=tmp_path / "step=4.ckpt")
    assert net.seen[0] == [0]  # not [4]


class SetUpBeforeRestoring(pl.strategies.SingleDeviceStrategy):
    """Restores after set-up, as FSDP and DeepSpeed do: `configure_optimizers` cannot see that it resumes."""

    @property
    def restore_checkpoint_after_setup(self):
        return True


def test_strategies_that_restore_after_setup_resume_too(tmp_path):
    settings = {"max_epochs": 3, "strategy": SetUpBeforeRestoring("cpu")}
    whole = steps_of(tmp_path, settings)
    settings["strategy"] = SetUpBeforeRestoring("cpu")
    resumed = steps_of(tmp_path / "again", settings, tmp_path / "step=8.ckpt")
    assert resumed.seen == whole.seen[8:]


def test_a_resumed_run_of_another_length_says_so(tmp_path):
    steps_of(tmp_path, {"max_epochs": 3})
    with pytest.warns(UserWarning, match="max_steps 18 -> 30"):
        resumed = steps_of(tmp_path / "again", {"max_epochs": 5}, tmp_path / "step=12.ckpt")
    assert resumed.lrs[0] == pytest.approx(0.1 * (1 - 12 / 30))
    assert len(resumed.lrs) == 18


# ---------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_count_their_own_share(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parent / "ddp_run_length.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    counted = sorted(line for line in run.stdout.splitlines() if line.startswith("rank"))
    assert counted == ["rank 0: length 6, steps 6", "rank 1: length 6, steps 6"]


@pytest.mark.parametrize(
    "changes",
    [
        {"sched": {"name": "StepLR", "interval": "step", "step_size": 99, "warmup_epochs": 1}},
        {"param_groups": [{"match": "bias", "sched": {"name": "cosine", "max_epochs": 2}}]},
    ],
    ids=["a warmup", "a rule's"],
)
def test_epochs_of_a_part_are_those_of_the_loader_in_a_run_counted_in_steps(changes):
    net = Net({"name": "sgd", "lr": 0.1, **changes})
    trainer(max_steps=6).fit(net, loader(8))
    assert len(net.lrs) == 6
