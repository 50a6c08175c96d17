"""`python -m lightning_novograd`: describe, plot-schedule, and the page that describe writes."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from lightning_novograd.__main__ import main
from lightning_novograd.commands import describe
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.schema import LARC_KEYS, OPTIM_KEYS, RULE_KEYS, SCHED_KEYS, WARMUP_KEYS
from lightning_novograd.registry import available_optimizers, available_schedulers, get_optimizer, get_scheduler

PINNED = f"torch=={torch.__version__.split('+')[0]}" in (ROOT / "constraints.txt").read_text()


def lines_of(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def test_describe_lists_everything_with_one_line_each(capsys):
    lines = lines_of(capsys, "describe")
    described = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if len(line.split()) > 1}
    assert {*available_optimizers(), *available_schedulers()} <= described.keys()
    assert described["NovoGrad"].startswith("Stochastic gradient descent with layer-wise normalized gradients")


@pytest.mark.parametrize(
    ("kind", "shown", "hidden"), [("optimizer", "NovoGrad", "StepLR"), ("scheduler", "StepLR", "SGD")]
)
def test_describe_lists_one_kind(kind, shown, hidden, capsys):
    names = {line.split()[0] for line in lines_of(capsys, "describe", kind) if line}
    assert shown in names
    assert hidden not in names


def test_describe_an_optimizer(capsys):
    lines = lines_of(capsys, "describe", "optimizer", "novograd")
    assert (lines[0], "https://arxiv.org/abs/1905.11286" in lines[2]) == ("NovoGrad", True)
    end = lines.index("", 4)
    rows = {line.split()[0]: line for line in lines[4:end]}
    assert list(rows) == list(entry_arguments(get_optimizer("novograd")))
    assert re.search(r"betas +list of 2 numbers +\[0\.95, [0-9.]+\] +\S", rows["betas"])


@pytest.mark.parametrize("argv", [[], ["optimizer"], ["optimizer", "novograd"]], ids=str)
def test_describe_says_whether_the_kernels_are_used(argv, capsys):
    lines = lines_of(capsys, "describe", *argv)
    said = [line for line in lines if line.startswith("C++ kernels")]
    assert said == ["C++ kernels for the CPU (NovoGrad, LARC): not used: NOVOGRAD_KERNELS=0"]
    assert lines[-1] == said[0] or argv == []


@pytest.mark.parametrize(
    "argv", [["scheduler"], ["scheduler", "cosine"], ["optimizer", "sgd"], ["--markdown"]], ids=str
)
def test_and_not_where_it_does_not_matter(argv, capsys):
    assert not [line for line in lines_of(capsys, "describe", *argv) if line.startswith("C++ kernels")]


def test_describe_a_scheduler(capsys):
    lines = lines_of(capsys, "describe", "scheduler", "COSINE")
    assert (lines[0], lines[2]) == ("CosineAnnealing", "  also called cosine")
    assert [line.split()[0] for line in lines if line.startswith("  max_steps")] == ["max_steps"]
    assert "the run's" in next(line for line in lines if line.startswith("  max_steps"))
    assert not [line for line in lines if "last_epoch" in line]


@pytest.mark.parametrize(("name", "kind"), [("novograd", "optimizer"), ("Cosine", "scheduler"), ("SGD", "optimizer")])
def test_describe_finds_the_kind_of_a_name(name, kind, capsys):
    assert lines_of(capsys, "describe", name) == lines_of(capsys, "describe", kind, name)


@pytest.mark.parametrize("name", [n for n in available_schedulers() if "Annealing" in n or "Policy" in n])
def test_every_argument_of_our_schedulers_has_its_line_of_help(name):
    rows = describe.details(get_scheduler(name)).split("\n\n")[1].splitlines()
    assert rows
    assert all(len(re.split(r" {2,}", row.strip())) >= 3 for row in rows), rows


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["describe", "optimizer", "novagrad"], "error: unknown optimizer 'novagrad'; did you mean 'NovoGrad'?"),
        (["describe", "novagrad"], "error: unknown optimizer or scheduler 'novagrad'; did you mean 'NovoGrad'?"),
        (["describe", "cosin"], "error: unknown optimizer or scheduler 'cosin'; did you mean "),
        (
            ["describe", "schedular", "cosine"],
            "error: describe schedular cosine: unknown kind; did you mean 'scheduler'?",
        ),
        (["plot-schedule", "nowhere.yaml", "--out", "lr.png"], "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_user_errors_are_one_line_and_status_2(argv, message, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize("argv", [[], ["describe", "scheduler", "a", "b"], ["plot-schedule"]])
def test_wrong_usage_shows_the_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: python -m lightning_novograd" in capsys.readouterr().err


def test_it_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "lightning_novograd", "describe"], capture_output=True, text=True, check=True
    )
    assert "CosineAnnealing" in run.stdout


COMMANDS = [
    pytest.param(["describe"], id="describe"),
    pytest.param(["describe", "--markdown"], id="describe --markdown", marks=pytest.mark.slow),
    pytest.param(["describe", "optimizer", "sgd"], id="describe optimizer sgd", marks=pytest.mark.slow),
]


def run_into(stdout, argv):
    command = [sys.executable, "-m", "lightning_novograd", *argv]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
@pytest.mark.parametrize("argv", COMMANDS)
def test_a_reader_that_has_gone_ends_it_quietly(argv):
    reader, writer = os.pipe()
    os.close(reader)
    done = run_into(writer, argv)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("argv", COMMANDS)
def test_a_stdout_that_cannot_be_written_is_one_line(argv):
    with open("/dev/full", "w") as full:
        done = run_into(full, argv)
    assert (done.returncode, done.stderr) == (2, "error: stdout cannot be written: No space left on device\n")


# ---------------------------------------------------------------------------------------------- docs/optim_block.md


@pytest.mark.skipif(not PINNED, reason="the page lists the classes of the torch version in constraints.txt")
def test_the_page_is_current():
    page = (ROOT / "docs" / "optim_block.md").read_text()
    assert page == describe.markdown(), "run: python -m lightning_novograd describe --markdown > docs/optim_block.md"


def test_the_page_has_every_key_and_is_well_formed(capsys):
    page = "\n".join(lines_of(capsys, "describe", "--markdown"))
    for key in (*OPTIM_KEYS, *SCHED_KEYS, *WARMUP_KEYS, *RULE_KEYS, *LARC_KEYS):
        assert f"| `{key}` | " in page
    for line in page.splitlines():
        assert not line.startswith("| `") or line.count("|") == 5, line
    assert "\\" not in page
