"""Log lines come from rank 0 only, or say from which rank they come."""

import logging
import re
import subprocess
import sys

import pytest
import torch

from lightning_novograd import log
from lightning_novograd.log import every_rank_logger, launched_rank, rank_zero_logger
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.optim.novograd import probe


@pytest.mark.parametrize(("initialized", "rank", "speaks"), [(False, 1, True), (True, 0, True), (True, 1, False)])
def test_only_the_first_rank_speaks(initialized, rank, speaks, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    with caplog.at_level(logging.INFO):
        rank_zero_logger("lightning_novograd.tests").info("said")
    assert ("said" in caplog.text) is speaks


@pytest.mark.parametrize(("initialized", "rank", "said"), [(False, 0, "2 of 3"), (True, 1, "[rank 1] 2 of 3")])
def test_every_rank_speaks_for_itself(initialized, rank, said, monkeypatch, caplog):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    every_rank_logger("lightning_novograd.tests.ranks").warning("%d of 3", 2)
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize("logger", [library.log, probe.log], ids=["library", "probe"])
def test_a_rank_that_steps_in_another_way_says_so(logger, monkeypatch, caplog):
    """Its replica drifts from the others' by roundings."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    logger.warning("cannot be used")
    assert [record.getMessage() for record in caplog.records] == ["[rank 3] cannot be used"]


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_rank_is_known_before_there_is_a_process_group(variable, monkeypatch, caplog):
    for rank, speaks in (("1", False), ("0", True)):
        monkeypatch.setenv(variable, rank)
        with caplog.at_level(logging.INFO):
            rank_zero_logger("lightning_novograd.tests").info("rank %s", rank)
        assert (f"rank {rank}" in caplog.text) is speaks


# launcher: what it sets on a process, and its rank
LAUNCHED = {
    "none": ({}, None),
    "none, SLURM's of an interactive job": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0),
    "Lightning, first process": ({}, None),
    "Lightning, second process": ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 1),
    "Lightning, first of the second node": ({"NODE_RANK": "1"}, 1),
    "Lightning, first of the first node": ({"NODE_RANK": "0"}, None),
    "Lightning, first of the second node, by GROUP_RANK": ({"GROUP_RANK": "1"}, 1),
    "Lightning, second of the first node": ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, 1),
    "Lightning, started on the second node as the first": ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1),
    "torchrun": ({"RANK": "9", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "16"}, 9),
    "torchrun, first": ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, 0),
    "torchrun, in a job of SLURM": ({"RANK": "3", "LOCAL_RANK": "3", "SLURM_PROCID": "0"}, 3),
    "torchrun, first of the second node": ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, 8),
    "SLURM": ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}, 3),
    "SLURM, with MPI's": ({"SLURM_PROCID": "3", "PMI_RANK": "3"}, 3),
    "LSF": ({"JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_LOCAL_RANK": "1"}, 5),
    "no number": ({"RANK": ""}, None),
}
MPI = {"Open MPI": "OMPI_COMM_WORLD_RANK", "MPICH": "PMI_RANK"}


@pytest.mark.parametrize(("environment", "rank"), LAUNCHED.values(), ids=LAUNCHED)
def test_the_rank_that_a_launcher_gives(environment, rank, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


@pytest.mark.parametrize("name", MPI.values(), ids=MPI)
@pytest.mark.parametrize(("module", "rank"), [("mpi4py", 2), (None, None)])
def test_mpi_counts_where_lightning_can_ask_it(name, module, rank, monkeypatch):
    monkeypatch.setattr(log, "find_spec", lambda asked: asked if asked == module else None)
    monkeypatch.setenv(name, "2")
    assert launched_rank() == rank


BUILD = """
import logging, os, sys
from torch import nn
from lightning_novograd import build_optimizers

def build():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    build_optimizers({"name": "sgd", "lr": 0.1, "sched": {"name": "cosine"}}, module, max_steps=70)
"""
SCHEDULE = r"Schedule CosineAnnealing, stepped every step; the run has 70 optimizer steps: .*\n"

# What an application does after the package was imported, what undoes it, and how a line then begins (None: not at all)
STAGES = [
    ("pass", "pass", ""),
    ("ours.addHandler(mine)", "ours.removeHandler(mine)", "mine "),
    ("ours.setLevel('WARNING')", "ours.setLevel('INFO')", None),
    ("root.addHandler(logging.NullHandler())", "root.handlers.clear()", ""),
    ("os.environ['RANK'] = '1'", "del os.environ['RANK']", None),
    ("sys.stderr = sys.stdout", "sys.stderr = sys.__stderr__", None),
    ("logging.basicConfig(format='app %(message)s')", "root.handlers.clear()", "app "),
    ("ours.propagate = False; root.addHandler(mine)", "ours.propagate = True; root.handlers.clear()", ""),
]


def run(script, *arguments, cwd):
    (cwd / "main.py").write_text(script)
    done = subprocess.run([sys.executable, "main.py", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def seen_once(begin, text):
    return (
        len(re.findall(f"^{begin}{SCHEDULE}", text, re.MULTILINE))
        == text.count("Schedule")
        == text.count("frozen")
        == 1
    )


def test_a_line_is_seen_once_whoever_sets_up_logging(tmp_path):
    script = f"""{BUILD}
root, ours, mine = logging.getLogger(), logging.getLogger("lightning_novograd"), logging.StreamHandler()
mine.setFormatter(logging.Formatter("mine %(message)s"))
for before, after, _ in {STAGES}:
    exec(before)
    build()
    exec(after)
    print("---", file=sys.stderr)
"""
    done = run(script, cwd=tmp_path)
    *stages, rest = done.stderr.split("---\n")
    for (doing, _, begin), text in zip(STAGES, stages, strict=True):
        assert not text if begin is None else seen_once(begin, text), (doing, text)
    assert not rest
    assert seen_once("", done.stdout)  # of sys.stderr elsewhere


@pytest.mark.parametrize(
    ("before", "begin"),
    [
        pytest.param(
            "import logging; logging.basicConfig(format='app %(message)s', level='WARNING')", "app ", id="logging"
        ),
        pytest.param("import lightning.pytorch", "", id="Lightning", marks=pytest.mark.slow),
        pytest.param(
            "from absl import logging; logging.use_absl_handler(); logging.set_verbosity('info')",
            "I.*] ",
            id="absl",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_nor_is_it_lost_when_logging_was_set_up_before(before, begin, tmp_path):
    if "absl" in before:
        pytest.importorskip("absl")
    done = run(f"{before}\n{BUILD}\nbuild()\n", cwd=tmp_path)
    assert seen_once(begin, done.stderr), done.stderr
    assert "Schedule" not in done.stdout


def test_under_hydra_it_is_in_hydras_log(tmp_path):
    main = "import hydra\n@hydra.main(version_base='1.3', config_path=None)\ndef main(cfg): build()\nmain()\n"
    done = run(BUILD + main, "hydra.run.dir=out", cwd=tmp_path)
    for text in (done.stdout, (tmp_path / "out" / "main.log").read_text()):
        assert seen_once(r"\[.*\]\[lightning_novograd.config.build\]\[INFO\] - ", text), text
    assert not done.stderr
