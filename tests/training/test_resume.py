"""Fits that resume with another config than they were saved with: what is used, and what is said of it."""

import warnings

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from tiny_fit import Net, Step, loader, trainer

from lightning_novograd.config import build_optimizers, parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import available_optimizers
from lightning_novograd.training.checkpoint.resume import ResumeCheck
from lightning_novograd.training.mixin import OptimMixin

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*(dirpath has changed|callbacks used to create).*"
)
EPOCH = 4  # optimizer steps
SAVED_AT = 6


def sgd(lr=0.1, sched=None, **changes):
    return {"name": "sgd", "lr": lr, "momentum": 0.9, **({"sched": sched} if sched else {}), **changes}


def per_step(name, **arguments):
    return {"name": name, "interval": "step", **arguments}


@pytest.fixture
def resumed(tmp_path_factory):
    """A function of two blocks: trains 3 epochs with one, resumes at step 6 with the other; (module, warnings)."""

    def fit(before, after, epochs=3, saved_at=SAVED_AT, net=Net, callbacks=()):
        folder = tmp_path_factory.mktemp("run")
        save = ModelCheckpoint(folder, every_n_train_steps=saved_at, save_top_k=-1, filename="{step}")
        whole = net(before)
        trainer(max_epochs=3, callbacks=[save, *(make() for make in callbacks)], enable_checkpointing=True).fit(
            whole, loader()
        )
        rest = net(after)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(max_epochs=epochs, callbacks=[make() for make in callbacks]).fit(
                rest, loader(), ckpt_path=folder / f"step={saved_at}.ckpt"
            )
        said = [str(w.message) for w in caught if "config differ" in str(w.message) or "resumes at" in str(w.message)]
        rest.before = whole.lrs
        return rest, said

    return fit


SCHEDULES = {
    "none": None,
    "ours": {"name": "cosine", "warmup_steps": 2},
    "ours per epoch": {"name": "WarmupAnnealing", "interval": "epoch"},
    "StepLR": per_step("StepLR", step_size=5),
    "MultiStepLR": per_step("MultiStepLR", milestones=[4, 8]),
    "CosineAnnealingLR": per_step("CosineAnnealingLR"),
    "CosineAnnealingWarmRestarts": per_step("CosineAnnealingWarmRestarts", T_0=4),
    "OneCycleLR": {"name": "OneCycleLR", "max_lr": 0.2},
    "CyclicLR": per_step("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=5),
    "ReduceLROnPlateau": {"name": "ReduceLROnPlateau", "monitor": "loss", "patience": 9},
    "SequentialLR": per_step(
        "SequentialLR",
        milestones=[3],
        schedulers=[{"name": "LinearLR", "total_iters": 3}, {"name": "cosine", "max_steps": 9}],
    ),
    "warmup, then StepLR": per_step("StepLR", step_size=2, warmup_steps=3),
    "warmup, then a cosine": per_step("CosineAnnealingLR", warmup_ratio=0.25),
    "warmup in epochs": {"name": "StepLR", "step_size": 1, "warmup_epochs": 1},
    "ours to the end": per_step("SequentialLR", milestones=[4], schedulers=[{"name": "warmup"}, {"name": "cosine"}]),
    "ChainedScheduler": per_step(
        "ChainedScheduler", schedulers=[{"name": "LinearLR", "total_iters": 5}, {"name": "ExponentialLR", "gamma": 0.9}]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_config_goes_on_as_if_nothing_had_happened_and_nothing_is_said(name, resumed):
    block = sgd(sched=SCHEDULES[name])
    rest, said = resumed(block, block)
    assert rest.lrs == pytest.approx(rest.before[SAVED_AT:])
    assert not said


@pytest.mark.parametrize(
    "block",
    [
        {
            "name": "novograd",
            "lr": 0.1,
            "betas": [0.9, 0.5],
            "larc": True,
            "no_decay": ["bias"],
            "sched": {"name": "cosine"},
        },
        {"name": "adamw", "lr": 0.1, "param_groups": [{"match": "*.bias", "lr": 0.2, "name": "b"}]},
    ],
    ids=lambda block: block["name"],
)
def test_optimizers_and_groups_of_the_same_config_say_nothing_either(block, resumed):
    assert resumed(block, block)[1] == []


# ---------------------------------------------------------------------------------------------- the optimizer


@pytest.mark.parametrize(
    ("before", "after", "used"),
    [
        pytest.param(sgd(0.1), sgd(0.01), ["lr 0.1 (config: 0.01)"], id="lr"),
        pytest.param(
            sgd(weight_decay=0.5, momentum=0.8),
            sgd(weight_decay=0.25),
            ["momentum 0.8 (config: 0.9)", "weight_decay 0.5 (config: 0.25)"],
            id="others",
        ),
        pytest.param(
            {"name": "novograd", "betas": [0.9, 0.5]},
            {"name": "novograd", "betas": [0.9, 0.25]},
            ["betas [0.9, 0.5] (config: [0.9, 0.25])"],
            id="betas",
        ),
        pytest.param(
            sgd(param_groups=[{"match": "*.bias", "lr": 0.2}]),
            sgd(param_groups=[{"match": "*.bias", "lr": 0.3}]),
            ["param group 1: lr 0.2 (config: 0.3)"],
            id="one group",
        ),
        pytest.param(
            sgd(larc={"trust_coefficient": 0.5}),
            sgd(larc={"trust_coefficient": 0.25}),
            ["larc_trust_coefficient 0.5 (config: 0.25)"],
            id="LARC",
        ),
        pytest.param(
            sgd(sched=SCHEDULES["ours"], weight_decay=0.5),
            sgd(sched=SCHEDULES["ours"]),
            ["weight_decay 0.5 (config: 0)"],
            id="under a schedule of ours",
        ),
    ],
)
def test_settings_of_the_optimizer_are_the_checkpoints_and_a_warning_names_them(before, after, used, resumed):
    rest, (said,) = resumed(before, after)
    assert said.startswith(f"the checkpoint and the config differ; the run goes on with {'; '.join(used)}. ")
    assert rest.lrs == rest.before[SAVED_AT:]


class Thawing(BaseFinetuning):
    """On restart Lightning's callback puts the checkpoint's param groups into the optimizer before it is loaded."""

    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


def test_settings_are_compared_under_a_fine_tuning_callback_too(resumed):
    rest, said = resumed(sgd(weight_decay=0.1), sgd(lr=0.2, weight_decay=0.5), callbacks=(Thawing,))
    assert len(said) == 1
    assert "weight_decay 0.1 (config: 0.5)" in said[0]
    assert "lr 0.1 (config: 0.2)" in said[0]
    assert rest.optimizers().param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(("before", "after"), [("adam", "sgd"), ("novograd", "sgd"), ("sgd", "novograd")])
def test_the_state_of_another_optimizer_is_refused(before, after, resumed):
    with pytest.raises(ConfigError, match=r"cannot go on from the state of .*load the weights alone") as caught:
        resumed({"name": before, "lr": 0.1}, {"name": after, "lr": 0.1})
    assert caught.value.path == "optim.name"


def test_adam_and_adamw_go_on_from_each_others_state(resumed):
    _, said = resumed({"name": "adam", "lr": 0.1}, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5})
    assert "weight_decay 0 (config: 0.5)" in said[0]


def test_a_setting_assigned_in_on_train_start_holds(resumed):
    class Assigns(Net):
        def on_train_start(self):
            self.optimizers().param_groups[0]["lr"] = self.optim_config.args["lr"]

    rest, _ = resumed(sgd(0.1), sgd(0.01), net=Assigns)
    assert set(rest.lrs) == {0.01}


def watched(block):
    """A net of one matrix, for Muon's sake, and its optimizer, whose loading is watched."""
    torch.manual_seed(0)
    net = torch.nn.Embedding(3, 2, sparse=block["name"] == "SparseAdam")
    built = build_optimizers(block, net)
    ResumeCheck(parse_optim(block), built, lambda: None, lambda: None, lambda: 0)
    return net, built["optimizer"]


def restored(before, after, change=lambda state: None):
    """The optimizer of block `after` with the state that the one of block `before` has after a step."""
    net, trained = watched(before)

    def closure():
        loss = net(torch.arange(3)).square().sum()
        loss.backward()
        return loss

    trained.step(closure)
    state = trained.state_dict()
    change(state)
    _, optimizer = watched(after)
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.parametrize("name", available_optimizers())
def test_no_optimizer_is_said_to_differ_from_itself(name, recwarn):
    restored({"name": name}, {"name": name})
    assert not [w for w in recwarn.list if "config differ" in str(w.message)]


def test_settings_that_the_checkpoint_lacks_are_the_configs():
    def forget(state):
        del state["param_groups"][0]["momentum"]

    (group,) = restored(sgd(), sgd(larc={"trust_coefficient": 0.5}), forget).param_groups
    assert (group["momentum"], group["larc_trust_coefficient"]) == (0.9, 0.5)


def test_other_param_groups_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"has .* default \(1\), default \(0\), .* makes default \(1\); rules"):
        restored(sgd(), sgd(), lambda state: state["param_groups"].append({"params": []}))


# ---------------------------------------------------------------------------------------------- torch's schedulers


@pytest.mark.parametrize(
    "name", ["StepLR", "CosineAnnealingLR", "ChainedScheduler", "CosineAnnealingWarmRestarts", "MultiStepLR"]
)
def test_torchs_schedulers_keep_the_saved_lr_and_say_so(name, resumed):
    rest, (said,) = resumed(sgd(0.1, SCHEDULES[name]), sgd(0.01, SCHEDULES[name]))
    assert "goes on with initial_lr 0.1 (config: 0.01). " in said
    assert rest.lrs == rest.before[SAVED_AT:]


@pytest.mark.parametrize(
    ("before", "after", "used"),
    [
        (per_step("StepLR", step_size=5), per_step("StepLR", step_size=7), "StepLR's step_size 5 (config: 7)"),
        (
            per_step("MultiStepLR", milestones=[4, 8]),
            per_step("MultiStepLR", milestones=[4, 9]),
            "MultiStepLR's milestones [(4, 1), (8, 1)] (config: [(4, 1), (9, 1)])",
        ),
        (SCHEDULES["CyclicLR"], {**SCHEDULES["CyclicLR"], "max_lr": 0.5}, "CyclicLR's max_lrs [0.1] (config: [0.5])"),
        (SCHEDULES["CyclicLR"], {**SCHEDULES["CyclicLR"], "step_size_up": 4}, "CyclicLR's total_size 10 (config: 8)"),
        (
            SCHEDULES["ReduceLROnPlateau"],
            {**SCHEDULES["ReduceLROnPlateau"], "factor": 0.5},
            "ReduceLROnPlateau's factor 0.1 (config: 0.5)",
        ),
        (
            SCHEDULES["SequentialLR"],
            {**SCHEDULES["SequentialLR"], "milestones": [4]},
            "SequentialLR's milestones [3] (config: [4])",
        ),
        (
            SCHEDULES["ChainedScheduler"],
            {
                **SCHEDULES["ChainedScheduler"],
                "schedulers": [{"name": "LinearLR", "total_iters": 5}, {"name": "ExponentialLR", "gamma": 0.5}],
            },
            "ExponentialLR's gamma 0.9 (config: 0.5)",
        ),
        (SCHEDULES["OneCycleLR"], {"name": "OneCycleLR", "max_lr": 0.4}, "max_lr 0.2 (config: 0.4)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_torchs_schedulers_keep_their_saved_settings_and_say_so(before, after, used, resumed):
    rest, (said,) = resumed(sgd(sched=before), sgd(sched=after))
    assert used in said
    assert rest.lrs == pytest.approx(rest.before[SAVED_AT:])


def test_a_longer_run_under_torchs_cosine_is_told_that_it_keeps_its_length(resumed):
    _, (said,) = resumed(sgd(sched=SCHEDULES["CosineAnnealingLR"]), sgd(sched=SCHEDULES["CosineAnnealingLR"]), epochs=6)
    assert "CosineAnnealingLR's T_max 12 (config: 24)" in said


def test_a_longer_run_under_one_cycle_is_refused_at_once(resumed):
    with pytest.raises(ConfigError, match="24, but OneCycleLR of the checkpoint ends after 12 steps") as caught:
        resumed(sgd(sched=SCHEDULES["OneCycleLR"]), sgd(sched=SCHEDULES["OneCycleLR"]), epochs=6)
    assert caught.value.path == "optim.sched.total_steps"


# ---------------------------------------------------------------------------------------------- another schedule


def test_without_its_schedule_a_run_stays_at_the_lr_where_it_was(resumed):
    for name in ("ours", "StepLR", "ReduceLROnPlateau"):
        rest, (said,) = resumed(sgd(sched=SCHEDULES[name]), sgd())
        assert "goes on with a constant lr" in said
        assert rest.lrs == pytest.approx([rest.before[SAVED_AT]] * 6)


@pytest.mark.parametrize(
    ("sched", "saved_at", "step"), [("ours", 6, 6), ("ours per epoch", 4, 1), ("ours per epoch", 6, 1)]
)
def test_a_schedule_of_ours_that_is_new_goes_on_at_the_step_of_the_run(sched, saved_at, step, resumed):
    whole, _ = resumed(sgd(sched=SCHEDULES[sched]), sgd(sched=SCHEDULES[sched]), saved_at=saved_at)
    rest, (said,) = resumed(sgd(), sgd(sched=SCHEDULES[sched]), saved_at=saved_at)
    assert f"resumes at step {step} with other settings than it was saved with: policy none -> " in said
    assert rest.lrs == pytest.approx(whole.before[saved_at:])


def test_a_schedule_of_ours_that_is_new_uses_the_new_lr(resumed):
    rest, (said,) = resumed(sgd(0.1), sgd(0.5, SCHEDULES["ours"]))
    assert "policy none -> CosineAnnealing; lr of param group 0 0.1 -> 0.5" in said
    assert rest.lrs[0] == pytest.approx(0.25 * (1 + torch.cos(torch.tensor(torch.pi * 4 / 10)).item()))


@pytest.mark.parametrize("name", ["LinearLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"])
def test_a_schedule_of_torchs_that_is_new_begins_and_says_so(name, resumed):
    sched = SCHEDULES.get(name, per_step(name, total_iters=3))
    rest, (said,) = resumed(sgd(), sgd(sched=sched))
    fresh = Net(sgd(sched=sched))
    trainer(max_epochs=3).fit(fresh, loader())
    assert f"goes on with {name}, which the checkpoint does not have, from its step 0" in said
    if name != "ReduceLROnPlateau":  # which steps where an epoch ends
        assert rest.lrs == pytest.approx(fresh.lrs[: len(rest.lrs)])


@pytest.mark.parametrize("before", ["ours", "CosineAnnealingLR", "SequentialLR", "ChainedScheduler"])
def test_another_scheduler_of_torchs_goes_on_where_the_run_is_with_its_own_settings(before, resumed):
    rest, (said,) = resumed(sgd(sched=SCHEDULES[before]), sgd(sched=per_step("StepLR", step_size=4, gamma=0.5)))
    now = rest.before[SAVED_AT]
    assert f"goes on with StepLR instead of another scheduler, from step 6 and lr {now:.6g}. " in said
    assert rest.lrs == pytest.approx([now, now, now / 2, now / 2, now / 2, now / 2])


def test_a_scheduler_that_gathers_state_as_it_goes_keeps_it():
    class Counts(torch.optim.lr_scheduler.StepLR):
        def step(self, epoch=None):
            if self.last_epoch >= 0:
                self.steps_seen = getattr(self, "steps_seen", 0) + 1
            super().step(epoch)

    saved, again = (build_optimizers(sgd(), torch.nn.Linear(2, 1))["optimizer"] for _ in range(2))
    scheduler = Counts(saved, step_size=5)
    saved.step()
    scheduler.step()
    states = [scheduler.state_dict()]
    built = {"optimizer": again, "lr_scheduler": {"scheduler": Counts(again, step_size=5)}}
    ResumeCheck(parse_optim(sgd(sched=SCHEDULES["StepLR"])), built, lambda: states, lambda: None, lambda: 1)
    again.load_state_dict(saved.state_dict())
    assert states == [scheduler.state_dict()]


@pytest.mark.parametrize("before", SCHEDULES)
@pytest.mark.parametrize("after", SCHEDULES)
def test_any_schedule_may_follow_any_other_and_it_is_said(before, after, resumed):
    rest, said = resumed(sgd(sched=SCHEDULES[before]), sgd(sched=SCHEDULES[after]))
    assert len(rest.lrs) == 6
    assert bool(said) == (before != after)


def test_one_cycle_after_another_scheduler_follows_its_own_cycle(resumed):
    whole, _ = resumed(sgd(sched=SCHEDULES["OneCycleLR"]), sgd(sched=SCHEDULES["OneCycleLR"]))
    rest, (said,) = resumed(sgd(sched=SCHEDULES["ours"]), sgd(sched=SCHEDULES["OneCycleLR"]))
    assert "OneCycleLR instead of another scheduler, from step 6" in said
    assert rest.lrs[1:] == pytest.approx(whole.before[SAVED_AT + 1 :])


@pytest.mark.parametrize("before", ["StepLR", "ReduceLROnPlateau", "ChainedScheduler", "ours per epoch"])
def test_ours_after_another_scheduler_goes_on_where_the_run_is(before, resumed):
    sched = {"name": "cosine", "warmup_steps": 2, **({"interval": "epoch"} if before == "ours per epoch" else {})}
    _, (said,) = resumed(sgd(sched=SCHEDULES[before]), sgd(sched=sched))
    assert f"CosineAnnealing resumes at step {1 if before == 'ours per epoch' else 6} with other settings" in said


@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
def test_both_packages_of_lightning_are_compared(package, tmp_path):
    def net(block):
        module = type("Module", (OptimMixin, Step, package.LightningModule), {})()
        module.optim_config = block
        return module

    run = trainer(package, max_epochs=1)
    run.fit(net(sgd(0.1)), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    rest = net(sgd(0.01, SCHEDULES["ours"]))
    with pytest.warns(UserWarning, match="resumes at step 4 .* policy none -> CosineAnnealing; lr of param group 0"):
        trainer(package, max_epochs=3).fit(rest, loader(), ckpt_path=tmp_path / "last.ckpt")
