"""LightningCLI: optimizers and schedules by class name, and the optim block as an argument of the model."""

import re
import shlex
import sys
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import ROOT
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

from lightning_novograd import LARC, ConfigError, NovoGrad, OptimMixin
from lightning_novograd.lr_scheduler.nemo import CosineAnnealing
from lightning_novograd.training.cli import OptimCLI

TRAINER = [
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"),
    *("--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.max_epochs=2"),
]


class Net(pl.LightningModule):
    """8 batches an epoch; notes the LR of every batch."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.layer = torch.nn.Linear(4, width)
        self.lrs: list[float] = []

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(32, 4)), batch_size=4)

    def training_step(self, batch, batch_idx):
        self.lrs.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(batch[0]).square().mean()


class NetWithBlock(OptimMixin, Net):
    def __init__(self, optim: dict[str, Any]):
        super().__init__()
        self.optim_config = optim


class Unregistered(torch.optim.SGD):
    """Known to the command line, as all imported classes are, but not to the registry."""


@pytest.fixture
def fit(monkeypatch, tmp_path):
    def run(cli, model, *arguments):
        monkeypatch.setattr(sys, "argv", ["main.py"])
        root = f"--trainer.default_root_dir={tmp_path}"
        return cli(model, args=["fit", *TRAINER, root, *arguments], seed_everything_default=1).model

    return run


def cosine_lrs(base_lr: float, steps: int, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    schedule = CosineAnnealing(optimizer, max_steps=steps, **arguments)
    return [schedule.lr_at(step, base_lr) for step in range(steps)]


def test_novograd_and_cosine_by_name_with_the_length_of_the_run(fit):
    model = fit(
        OptimCLI,
        Net,
        *("--optimizer", "NovoGrad", "--optimizer.lr=0.05", "--optimizer.betas=[0.9, 0.3]"),
        *("--lr_scheduler", "CosineAnnealing", "--lr_scheduler.warmup_steps=3"),
    )
    assert isinstance(model.optimizers().optimizer, NovoGrad)
    assert model.optimizers().param_groups[0]["betas"] == (0.9, 0.3)
    assert model.lrs == pytest.approx(cosine_lrs(0.05, 16, warmup_steps=3), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "arguments"), [("CosineAnnealingLR", []), ("OneCycleLR", ["--lr_scheduler.max_lr=0.1"])]
)
def test_torch_schedules_get_the_length_of_the_run_too(fit, schedule, arguments):
    model = fit(OptimCLI, Net, "--optimizer=NovoGrad", "--optimizer.lr=0.05", f"--lr_scheduler={schedule}", *arguments)
    state = model.lr_schedulers().state_dict()
    assert {"CosineAnnealingLR": ("T_max", 2), "OneCycleLR": ("total_steps", 16)}[schedule] in state.items()


@pytest.mark.parametrize(
    ("arguments", "moves"),
    [
        ([], True),
        (["--optimizer.betas=[0.9, 0.25]"], False),
        (["--optimizer.betas=[0.9, 0.25]", "--lr_scheduler.base_momentum=0.8"], True),
    ],
)
def test_one_cycle_moves_no_beta_that_the_command_line_says(fit, arguments, moves):
    cycle = ["--optimizer=NovoGrad", "--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=0.1"]
    model = fit(OptimCLI, Net, *cycle, *arguments)
    assert model.lr_schedulers().cycle_momentum == moves
    assert (model.optimizers().param_groups[0]["betas"][0] == 0.9) == (not moves)


def test_accumulation_shortens_the_schedule(fit):
    arguments = ["--optimizer=NovoGrad", "--optimizer.lr=0.05", "--lr_scheduler=CosineAnnealing"]
    model = fit(OptimCLI, Net, *arguments, "--trainer.accumulate_grad_batches=4")
    assert model.lrs[::4] == pytest.approx(cosine_lrs(0.05, 4), rel=1e-12)


def test_torch_schedulers_keep_their_own_unit(fit):
    arguments = ["--optimizer=AdamW", "--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
    model = fit(OptimCLI, Net, *arguments)
    assert model.lrs == pytest.approx([0.1] * 8 + [0.01] * 8)


def test_the_saved_config_reproduces_the_run(fit, tmp_path):
    arguments = ["--optimizer=NovoGrad", "--optimizer.lr=0.05", "--lr_scheduler=CosineAnnealing"]
    first = fit(OptimCLI, Net, *arguments)
    (tmp_path / "config.yaml").rename(tmp_path / "saved.yaml")
    second = fit(OptimCLI, Net, "--config", str(tmp_path / "saved.yaml"))
    assert second.lrs == first.lrs
    assert torch.equal(second.layer.weight, first.layer.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--lr_scheduler=CosineAnnealing"], "lr_scheduler: CosineAnnealing needs an --optimizer", id="alone"
        ),
        pytest.param(
            ["--optimizer=Unregistered", "--optimizer.lr=1"],
            "unknown optimizer 'Unregistered'",
            id="not in the registry",
        ),
        pytest.param(
            ["--optimizer=NovoGrad", "--lr_scheduler=CosineAnnealing", "--lr_scheduler.warmup_steps=17"],
            r"optim\.sched\.warmup_steps: 17 warmup steps do not fit max_steps=16",
            id="does not fit the run",
        ),
    ],
)
def test_what_cannot_work_is_refused(fit, arguments, message):
    with pytest.raises(ConfigError, match=message):
        fit(OptimCLI, Net, *arguments)


@pytest.mark.parametrize("cli", [LightningCLI, OptimCLI])
def test_the_block_as_an_argument_of_the_model(fit, cli):
    model = fit(
        cli,
        NetWithBlock,
        *("--model.optim.name=novograd", "--model.optim.lr=0.05", "--model.optim.weight_decay=1e-3"),
        "--model.optim.sched={name: CosineAnnealing, warmup_steps: 3}",
        "--model.optim.larc={trust_coefficient: 0.01}",
    )
    assert isinstance(model.optimizers().optimizer, LARC)
    assert model.optimizers().param_groups[0]["weight_decay"] == 0.001
    assert model.lrs == pytest.approx(cosine_lrs(0.05, 16, warmup_steps=3), rel=1e-12)


def test_lightnings_own_cli_takes_the_optimizer(fit):
    model = fit(LightningCLI, Net, "--optimizer=NovoGrad", "--optimizer.lr=0.05")
    assert isinstance(model.optimizers().optimizer, NovoGrad)
    assert model.lrs == [0.05] * 16


class NetWithPlainDict(OptimMixin, Net):
    def __init__(self, optim: dict):
        super().__init__()
        self.optim_config = optim


class NetWithSavedBlock(OptimMixin, Net):
    def __init__(self, optim: dict):
        super().__init__()
        self.save_hyperparameters()


NUMBERS = ["--model.optim.name=sgd", "--model.optim.lr", "0.01", "--model.optim.nesterov=true"]
NUMBERS += ["--model.optim.momentum=9e-1", "--model.optim.sched={name: cosine, warmup_steps: 3}"]


@pytest.mark.parametrize("cli", [LightningCLI, OptimCLI])
@pytest.mark.parametrize("model", [NetWithPlainDict, NetWithSavedBlock])
def test_numbers_in_a_plain_dict_are_numbers(fit, cli, model):
    """jsonargparse leaves them as text where the annotation does not say `dict[str, Any]`."""
    (group,) = fit(cli, model, *NUMBERS).optimizers().param_groups
    assert (group["initial_lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, True)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.optim.lr=fast", "optim.lr: expected a number, got the text 'fast'"),
        ("--model.optim.lr=nan", "optim.lr: expected a number, got the text 'nan'"),
        ("--model.optim.lr=true", "optim.lr: expected a number, got the text 'true'"),
    ],
)
def test_what_is_no_number_is_still_refused(fit, argument, message):
    with pytest.raises(ConfigError, match=message):
        fit(LightningCLI, NetWithPlainDict, "--model.optim.name=sgd", argument)


def test_text_in_code_is_still_text():
    with pytest.raises(ConfigError, match="YAML reads 1e-3 as text"):
        NetWithPlainDict({"name": "sgd", "lr": "1e-3"})


def test_lightnings_own_cli_steps_schedules_once_per_epoch_and_that_is_said(fit):
    arguments = ["--lr_scheduler=CosineAnnealing", "--lr_scheduler.max_steps=48", "--trainer.max_epochs=6"]
    with pytest.warns(UserWarning, match="CosineAnnealing counts optimizer steps, but .*OptimCLI"):
        fit(LightningCLI, Net, "--optimizer=NovoGrad", "--optimizer.lr=0.05", *arguments)


# ---------------------------------------------------------------------------------------------- docs/lightning_cli.md

PAGE = (ROOT / "docs" / "lightning_cli.md").read_text()
COMMANDS = re.findall(r"^python main\.py fit (.*)$", PAGE, re.MULTILINE)
[CONF] = re.findall(r"```yaml\n# conf\.yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(fit, command, tmp_path, monkeypatch):
    (tmp_path / "conf.yaml").write_text(CONF)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)
    model = fit(OptimCLI, NetWithBlock if "--model" in command else Net, *arguments)
    assert len(model.lrs) == 16
    assert len(set(model.lrs)) > 1


def test_the_page_has_commands():
    assert len(COMMANDS) == 5


def test_defaults_of_the_command_line_say_nothing_of_luc(fit):
    model = fit(OptimCLI, Net, "--optimizer=NovoGrad", "--optimizer.luc=true", "--optimizer.luc_trust=0.01")
    assert model.optimizers().param_groups[0]["luc_trust"] == 0.01
    with pytest.raises(ConfigError, match=r"luc_trust: 0\.01 has no effect without luc"):
        fit(OptimCLI, Net, "--optimizer=NovoGrad", "--optimizer.luc_trust=0.01")


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_yamls_words_for_true_are_true(fit, word):
    arguments = ["--model.optim.name=sgd", "--model.optim.momentum=0.9", f"--model.optim.nesterov={word}"]
    (group,) = fit(LightningCLI, NetWithPlainDict, *arguments).optimizers().param_groups
    assert group["nesterov"] is True
    with pytest.raises(ConfigError, match=r"optim\.nesterov: expected true or false, got the text 'tRue'"):
        fit(LightningCLI, NetWithPlainDict, *arguments[:2], "--model.optim.nesterov=tRue")


@pytest.mark.parametrize("word", ["null", "Null", "NULL"])
def test_yamls_words_for_null_are_null(fit, word):
    arguments = ["--model.optim.name=sgd", "--model.optim.lr=0.1", f"--model.optim.grad_clip_norm={word}"]
    assert fit(LightningCLI, NetWithPlainDict, *arguments).optim_config.grad_clip_norm is None


NESTED = ["--model.optim.name=sgd", "--model.optim.sched.name=cosine", "--model.optim.sched.warmup_steps", "3"]


@pytest.mark.parametrize("cli", [LightningCLI, OptimCLI])
@pytest.mark.parametrize("model", [NetWithBlock, NetWithPlainDict, NetWithSavedBlock])
@pytest.mark.parametrize(
    ("arguments", "lost", "cure"),
    [
        (NESTED, "sched.name: cosine", "sched='{name: cosine, warmup_steps: 3}'"),
        ([NESTED[0], *NESTED[2:], NESTED[1]], "sched.warmup_steps: 3", "sched='{warmup_steps: 3, name: cosine}'"),
        (
            [NESTED[0], "--model.optim.larc.eps=1e-7", "--model.optim.larc.clip=false"],
            "larc.eps: 1e-7",
            "larc='{eps: 1e-7, clip: false}'",
        ),
    ],
)
def test_what_jsonargparse_loses_is_refused(cli, model, arguments, lost, cure, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *TRAINER, f"--trainer.default_root_dir={tmp_path}", *arguments])
    with pytest.raises(ConfigError, match=re.escape(f"optim.{lost}, which got lost")) as caught:
        cli(model)
    assert f"write one: --model.optim.{cure}" in str(caught.value)


def test_what_a_program_hands_to_its_cli_is_explained(fit):
    said = (
        r"optim\.sched\.name: missing; which scheduler\? On a command line, jsonargparse keeps only the last of several"
    )
    with pytest.raises(ConfigError, match=said + r" options --model\.optim\.sched\.KEY; write one"):
        fit(LightningCLI, NetWithBlock, *NESTED)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.optim.name=sgd", "--model.optim.sched={name: cosine, warmup_steps: 3}"],
        ["--model.optim.name=sgd", "--model.optim.sched={name: cosine}", "--model.optim.larc.eps=1e-7"],
    ],
)
def test_what_jsonargparse_keeps_is_not(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["main.py", "fit", *TRAINER, f"--trainer.default_root_dir={tmp_path}", *arguments])
    assert OptimCLI(NetWithBlock).model.optim_config.sched.name == "CosineAnnealing"
