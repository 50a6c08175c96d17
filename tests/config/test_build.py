"""Config and module -> optimizer, LARC, and Lightning's scheduler dict of the right length."""

import logging
import warnings
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_novograd.config import RunLength, build_optimizers, parse_optim
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.optim.novograd.optimizer import NovoGrad
from lightning_novograd.registry import available_optimizers, available_schedulers, get_scheduler


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))


def block(**changes):
    return {"name": "novograd", "lr": 0.05, "weight_decay": 0.001, **changes}


def cosine(**changes):
    return block(sched={"name": "cosine", **changes})


def never() -> int:
    raise AssertionError("the length was asked for")


def test_arguments_reach_the_optimizer():
    net = model()
    built = build_optimizers(block(betas=[0.9, 0.5], grad_averaging=True), net)
    assert built.keys() == {"optimizer"}
    (group,) = built["optimizer"].param_groups
    assert isinstance(built["optimizer"], NovoGrad)
    assert (group["lr"], group["betas"], group["grad_averaging"]) == (0.05, (0.9, 0.5), True)
    assert list(map(id, group["params"])) == list(map(id, net.parameters()))


@pytest.mark.parametrize("name", available_optimizers())
def test_every_optimizer_is_built_from_its_name_and_steps(name):
    net, inputs = matrices(), torch.ones(5, 3)  # Muon takes matrices only
    if name == "SparseAdam":
        net, inputs = torch.nn.Embedding(3, 4, sparse=True), torch.tensor([0, 2])
    optimizer = build_optimizers({"name": name}, net)["optimizer"]
    before = [p.detach().clone() for p in net.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = net(inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all((p != old).any() for p, old in zip(net.parameters(), before, strict=True))


SCHEDULER_ARGUMENTS = {
    "ChainedScheduler": {"schedulers": [{"name": "StepLR", "step_size": 2}]},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "ExpDecay": {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": False},
    "ExponentialLR": {"gamma": 0.9},
    "InvPolyDecay": {"min_lr": 0.001},
    "MultiStepLR": {"milestones": [2, 4]},
    "NoamAnnealing": {"d_model": 64},
    "NoamHoldAnnealing": {"warmup_steps": 2},
    "OneCycleLR": {"max_lr": 0.1},
    "PiecewiseConstant": {"boundaries": [3], "decay_rates": [0.1]},
    "ReduceLROnPlateau": {"monitor": "val_loss"},
    "SequentialLR": {"schedulers": [{"name": "LinearLR"}, {"name": "StepLR", "step_size": 2}], "milestones": [3]},
    "StepLR": {"step_size": 2},
    "T5InverseSquareRootAnnealing": {"constant_steps": 3},
    "TransformerPolicy": {"d_model": 64, "warmup_steps": 3},
    "WarmupHoldAnnealExponential": {"gamma": 0.9, "num_decays": 5},
}
FUNCTIONS = {"LambdaLR", "MultiplicativeLR"}


@pytest.mark.parametrize("name", [n for n in available_schedulers() if n not in FUNCTIONS])
def test_every_scheduler_is_built_from_its_name_and_steps(name):
    given = {"min_lr": 0.0} if name == "SquareAnnealing" else SCHEDULER_ARGUMENTS.get(name, {})
    missing = [
        a for a in entry_arguments(get_scheduler(name)).values() if a.required and a.name not in (*given, "max_steps")
    ]
    assert not missing, f"{name} needs arguments in this test"
    cfg = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "sched": {"name": name, **given}}
    built = build_optimizers(cfg, model(), max_steps=10)
    scheduler = built["lr_scheduler"]["scheduler"]
    assert type(scheduler) is get_scheduler(name).cls
    for _ in range(3):
        built["optimizer"].step()
        scheduler.step(*((1.0,) if name == "ReduceLROnPlateau" else ()))
    assert built["optimizer"].param_groups[0]["lr"] > 0


def test_the_scheduler_dict_is_lightnings():
    built = build_optimizers(cosine(monitor="loss", log_name="lr"), model(), max_steps=10)["lr_scheduler"]
    assert {key: value for key, value in built.items() if key != "scheduler"} == {
        "interval": "step",
        "frequency": 1,
        "strict": True,
        "reduce_on_plateau": False,
        "monitor": "loss",
        "name": "lr",
    }


def test_plateau_is_stepped_with_its_metric_once_per_epoch():
    cfg = block(sched={"name": "reducelronplateau", "monitor": "val_loss", "strict": False, "frequency": 2})
    built = build_optimizers(cfg, model(), max_steps=never)["lr_scheduler"]
    assert (built["interval"], built["monitor"], built["reduce_on_plateau"]) == ("epoch", "val_loss", True)
    assert (built["strict"], built["frequency"]) == (False, 2)


# ---------------------------------------------------------------------------------------------- length

RUN = RunLength(100, "10 epochs x 10 batches", epochs=10, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("sched", "run", "attribute", "value", "source"),
    [
        pytest.param({"name": "cosine"}, 40, "max_steps", 40, "max_steps", id="a number"),
        pytest.param({"name": "cosine"}, RUN, "max_steps", 100, "10 epochs x 10 batches", id="a run"),
        pytest.param({"name": "cosine"}, lambda: RUN, "max_steps", 100, "10 epochs", id="asked"),
        pytest.param({"name": "cosine", "max_steps": 7}, never, "max_steps", 7, "sched.max_steps", id="own steps"),
        pytest.param(
            {"name": "cosine", "max_epochs": 3},
            RUN,
            "max_steps",
            30,
            "optim.sched.max_epochs=3 x 10 steps per epoch",
            id="own epochs",
        ),
        pytest.param(
            {"name": "cosine", "max_epochs": 3},
            RunLength(None, "", steps_per_epoch=lambda epoch: 10 - epoch),
            "max_steps",
            27,
            "optim.sched.max_epochs=3",
            id="own epochs that differ",
        ),
        pytest.param({"name": "cosine", "interval": "epoch"}, RUN, "max_steps", 10, "10 epochs", id="per epoch"),
        pytest.param(
            {"name": "cosine", "interval": "epoch", "max_epochs": 4}, never, "max_steps", 4, "max_epochs", id="both"
        ),
        pytest.param({"name": "OneCycleLR", "max_lr": 0.1}, RUN, "total_steps", 100, "10 epochs", id="OneCycleLR"),
        pytest.param({"name": "CosineAnnealingLR"}, RUN, "T_max", 10, "10 epochs", id="CosineAnnealingLR"),
        pytest.param({"name": "CosineAnnealingLR", "interval": "step"}, RUN, "T_max", 100, "10 epochs", id="per step"),
    ],
)
def test_length_of_the_schedule_and_the_log_line(sched, run, attribute, value, source, caplog):
    cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched}
    with caplog.at_level(logging.INFO, "lightning_novograd"):
        scheduler_entry = build_optimizers(cfg, model(), max_steps=run)["lr_scheduler"]
    scheduler = scheduler_entry["scheduler"]
    found = scheduler.arguments if attribute == "max_steps" else vars(scheduler)
    assert found[attribute] == value
    (record,) = caplog.records
    unit = "epochs" if scheduler_entry["interval"] == "epoch" else "optimizer steps"
    assert f" has {value} {unit}: " in record.getMessage()
    assert source in record.getMessage()


@pytest.mark.parametrize(
    "sched",
    [
        {"name": "StepLR", "step_size": 3},
        {"name": "CosineAnnealingLR", "T_max": 3},
        {"name": "cosine", "max_steps": 5},
    ],
)
def test_the_length_is_not_asked_for_in_vain(sched):
    cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": sched}
    assert build_optimizers(cfg, model(), max_steps=never)["lr_scheduler"]["scheduler"] is not None


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "StepLR", "cosine"])
def test_every_group_under_a_schedule_has_its_initial_lr(name):
    """By which a run that resumes knows that there was one; torch's ReduceLROnPlateau sets none."""
    more = {"ReduceLROnPlateau": {"monitor": "loss"}, "StepLR": {"step_size": 3}, "cosine": {"max_steps": 9}}[name]
    cfg = {"name": "sgd", "lr": 0.1, "param_groups": [{"match": "*.bias", "lr": 0.2}], "sched": {"name": name, **more}}
    groups = build_optimizers(cfg, model())["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == [group["lr"] for group in groups]
    assert sorted(group["initial_lr"] for group in groups) == [0.1, 0.2]


CONSTANT = {"name": "ConstantLR"}
CYCLE = {"name": "OneCycleLR", "max_lr": 0.1}


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"total_steps": 99}, "total_steps"),
        ({"epochs": 9, "steps_per_epoch": 11}, "epochs"),
        ({"max_steps": 99}, "max_steps"),
        ({"max_epochs": 9}, "max_epochs"),
        ({"total_steps": 49, "frequency": 2}, "total_steps"),
    ],
)
def test_one_cycle_that_ends_before_the_run_is_refused_before_it_starts(own, key):
    """torch raises in the middle of the run."""
    cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": {"name": "OneCycleLR", "max_lr": 0.1, **own}}
    with pytest.raises(ConfigError, match=r"OneCycleLR ends after \d+ steps, and the run has 100: 10 epochs") as caught:
        build_optimizers(cfg, model(), max_steps=RUN)
    assert caught.value.path == f"optim.sched.{key}"
    for run in (RunLength(None, "it has no end", 10, 10), RunLength(9, "shorter", 1, 9), replace(RUN, trial=True)):
        assert build_optimizers(cfg, model(), max_steps=run)


@pytest.mark.parametrize(
    ("sched", "fits"),
    [
        ({"name": "SequentialLR", "milestones": [40], "schedulers": [CONSTANT, {**CYCLE, "total_steps": 60}]}, True),
        ({"name": "SequentialLR", "milestones": [40], "schedulers": [CONSTANT, {**CYCLE, "total_steps": 59}]}, False),
        ({"name": "SequentialLR", "milestones": [40], "schedulers": [{**CYCLE, "total_steps": 39}, CONSTANT]}, True),
        ({"name": "SequentialLR", "milestones": [40], "schedulers": [{**CYCLE, "total_steps": 38}, CONSTANT]}, False),
        ({"name": "SequentialLR", "milestones": [200], "schedulers": [{**CYCLE, "total_steps": 99}, CONSTANT]}, False),
        ({"name": "ChainedScheduler", "schedulers": [CONSTANT, {**CYCLE, "total_steps": 100}]}, True),
        ({"name": "ChainedScheduler", "schedulers": [CONSTANT, {**CYCLE, "total_steps": 99}]}, False),
        ({"name": "SequentialLR", "milestones": [200], "schedulers": [{**CYCLE, "total_steps": 100}, CONSTANT]}, True),
    ],
)
def test_one_cycle_inside_another_scheduler_is_as_long_as_its_turn(sched, fits):
    cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": {**sched, "interval": "step"}}
    with warnings.catch_warnings(action="ignore"):  # torch's, of steps in another order than in a training
        if not fits:
            with pytest.raises(ConfigError, match="OneCycleLR ends after") as caught:
                build_optimizers(cfg, model(), max_steps=RUN)
            assert caught.value.path.endswith("].total_steps")
        else:
            assert build_optimizers(cfg, model(), max_steps=RUN)
        # torch agrees
        scheduler = build_optimizers(cfg, model(), max_steps=replace(RUN, trial=True))["lr_scheduler"]["scheduler"]
        with nullcontext() if fits else pytest.raises(ValueError, match="Tried to step"):
            for _ in range(100):
                scheduler.step()


def test_one_cycle_that_is_stepped_every_other_step_may_be_half_as_long():
    cfg = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "sched": {**CYCLE, "total_steps": 50, "frequency": 2}}
    entry = build_optimizers(cfg, model(), max_steps=RUN)["lr_scheduler"]
    assert (entry["frequency"], entry["scheduler"].total_steps) == (2, 50)


def test_the_length_is_asked_for_once_and_after_the_optimizer_is_built():
    asked = []
    net = model()
    cfg = block(param_groups=[{"match": "nothing"}], sched={"name": "cosine"})
    with pytest.raises(ConfigError, match="matches no parameter"):
        build_optimizers(cfg, net, max_steps=lambda: asked.append(1) or 10)
    assert not asked
    build_optimizers(cosine(), net, max_steps=lambda: asked.append(1) or 10)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("sched", "run", "path", "problem"),
    [
        pytest.param({}, None, "max_steps", "which is unknown: it was not given; set it here", id="nobody says"),
        pytest.param({}, RunLength(None, "it has no end"), "max_steps", "unknown: it has no end", id="no end"),
        pytest.param({"interval": "epoch"}, RunLength(9, "max_steps=9"), "max_epochs", "max_steps=9", id="no epochs"),
        pytest.param({"max_epochs": 3}, RunLength(9, "steps"), "max_epochs", "epoch is unknown", id="epochs"),
        pytest.param(
            {"warmup_steps": 200},
            RUN,
            "warmup_steps",
            "(the run has 100 optimizer steps: 10 epochs x 10 batches)",
            id="warmup longer than the run",
        ),
    ],
)
def test_lengths_that_cannot_be(sched, run, path, problem):
    with pytest.raises(ConfigError) as caught:
        build_optimizers(cosine(**sched), model(), max_steps=run)
    assert caught.value.path == f"optim.sched.{path}"
    assert problem in caught.value.problem


@pytest.mark.parametrize("name", ["WarmupPolicy", "NoamAnnealing"])
def test_an_endless_run_is_fine_for_schedules_without_end(name):
    extra = {"d_model": 4} if name == "NoamAnnealing" else {}
    cfg = block(sched={"name": name, "warmup_steps": 3, **extra})
    built = build_optimizers(cfg, model(), max_steps=RunLength(None, "no end"))
    assert built["lr_scheduler"]["scheduler"].arguments["max_steps"] is None


# ---------------------------------------------------------------------------------------------- groups and LARC


def test_rules_no_decay_and_larc_exclusion_reach_the_groups():
    rules = [{"match": "0.*", "lr": 0.01, "betas": [0.8, 0.5], "larc": False, "name": "first"}]
    cfg = block(no_decay="norm", param_groups=rules, larc={"trust_coefficient": 0.003})
    optimizer = build_optimizers(cfg, model())["optimizer"]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["default", "default, no decay", "first"]
    assert (groups["first"]["lr"], groups["first"]["betas"], groups["first"]["larc"]) == (0.01, (0.8, 0.5), False)
    assert [group["weight_decay"] for group in groups.values()] == [0.001, 0.0, 0.001]
    assert groups["default"]["larc_trust_coefficient"] == 0.003


def test_each_group_keeps_its_own_lr_in_the_schedule():
    cfg = cosine(warmup_steps=1)
    cfg["param_groups"] = [{"match": "0.*", "lr": 0.01}]
    built = build_optimizers(cfg, model(), max_steps=10)
    assert built["lr_scheduler"]["scheduler"].base_lrs == [0.05, 0.01]


def test_larc_wraps_the_optimizer_and_the_schedule_drives_larc():
    cfg = {"name": "sgd", "lr": 0.1, "larc": {"trust_coefficient": 0.01}, "sched": {"name": "cosine"}}
    built = build_optimizers(cfg, model(), max_steps=10)
    assert isinstance(built["optimizer"], LARC)
    assert built["optimizer"].target == "gradient"
    assert built["lr_scheduler"]["scheduler"].optimizer is built["optimizer"]


@pytest.mark.parametrize(("name", "warns"), [("novograd", True), ("adamw", True), ("sgd", False)])
def test_forcing_the_gradient_rule_where_it_does_nothing_is_warned_about_once(name, warns, recwarn):
    config = parse_optim({"name": name, "lr": 0.1, "larc": {"target": "gradient"}})
    assert not recwarn.list
    build_optimizers(config, model())
    assert [w.category for w in recwarn.list] == [UserWarning] * warns


def test_what_depends_on_the_model_is_refused_with_its_path():
    with pytest.raises(ConfigError, match=r"^optim: Muon refuses it: Muon only supports 2D"):
        build_optimizers({"name": "muon"}, model())


def test_state_dicts_hold_plain_values(tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(cosine(warmup_steps=2))
    cfg.betas, cfg.larc, cfg.param_groups = [0.9, 0.5], {"clip": True}, [{"match": "0.*", "betas": [0.8, 0.5]}]
    built = build_optimizers(cfg, model(), max_steps=10)
    state = {"optimizer": built["optimizer"].state_dict(), "sched": built["lr_scheduler"]["scheduler"].state_dict()}
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["optimizer"]["param_groups"][1]["betas"] == (0.8, 0.5)
