"""The training command around a run: what was most likely meant, and how it ends."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, ConfigCompositionException, MissingConfigException
from hydra.types import RunMode

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr import train
from lightning_novograd.recipes.common import command


def missing(name: str | None) -> MissingConfigException:
    return MissingConfigException("In 'asr': Could not find", name)


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (missing("sched/cosin"), "sched=cosine"),
        (missing("optim/papr/jasper_8k"), "optim=paper/jasper_8k"),
        (missing("sched/something_else"), None),
        (missing("nothing/cosine"), None),
        (missing(None), None),
        (ConfigCompositionException("Could not override 'shed'. No match in the defaults list."), "sched"),
        (ConfigCompositionException("Could not override 'nothing_like_it'."), None),
        (ConfigCompositionException("Could not append 'shed'."), None),
        (ValueError("Could not override 'shed'"), None),
        (None, None),
    ],
)
def test_the_nearest_choice(error, meant):
    assert command.nearest(error) == meant


def test_a_run_goes_to_hydras_folder_and_a_mistake_is_one_line(monkeypatch):
    asked = []
    runtime = SimpleNamespace(runtime=SimpleNamespace(output_dir="some/where"), mode=RunMode.RUN)
    monkeypatch.setattr(HydraConfig, "get", lambda: runtime)
    monkeypatch.setattr(command, "set_up_console", lambda: None)
    monkeypatch.setattr(command, "claim_folder", lambda *args: None)
    monkeypatch.setattr(train, "run", lambda *args: asked.append(args) or {"dev_wer": 0.25})
    assert train.main.__wrapped__({"seed": 1}) == 0.25
    assert asked == [({"seed": 1}, Path("some/where"))]

    def refuse(*args):
        raise ConfigError("optim.lr", "is bad")

    monkeypatch.setattr(train, "run", refuse)
    with pytest.raises(SystemExit) as end:
        train.main.__wrapped__({})
    assert end.value.code == "ConfigError: optim.lr: is bad"


@pytest.mark.parametrize(("mode", "error"), [(RunMode.RUN, SystemExit), (RunMode.MULTIRUN, command.JobFailed)])
def test_nothing_is_written_into_the_folder_of_another_run(monkeypatch, tmp_path, mode, error):
    (tmp_path / "results.json").write_text("{}")
    runtime = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)), mode=mode)
    monkeypatch.setattr(HydraConfig, "get", lambda: runtime)
    with pytest.raises(error, match=rf"^ConfigError: hydra\.run\.dir: {tmp_path} holds a run already"):
        train.main.__wrapped__({"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_plan_leaves_nothing_behind(monkeypatch):
    seen = []
    monkeypatch.setattr(command.sys, "argv", ["train.py", "--plan", "data=fsdd", "hydra.run.dir=RUN"])
    monkeypatch.setattr(train, "show_plan", lambda: seen.extend(command.sys.argv))
    train.plan()
    assert seen[:3] == ["train.py", "data=fsdd", "hydra.run.dir=RUN"]
    run_dir, sweep_dir, *quiet = seen[3:]  # later ones count
    folder = run_dir.removeprefix("hydra.run.dir=")
    assert sweep_dir == f"hydra.sweep.dir={folder}"
    assert not Path(folder).exists()
    assert quiet == ["hydra/job_logging=none", "hydra/hydra_logging=none"]


@pytest.mark.parametrize(("mode", "error"), [(RunMode.RUN, SystemExit), (RunMode.MULTIRUN, command.JobFailed)])
def test_a_plan_is_printed_or_refused_in_a_line(monkeypatch, capsys, mode, error):
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(mode=mode))
    monkeypatch.setattr(train, "describe_run", lambda cfg: f"the plan of {cfg}")
    train.show_plan.__wrapped__("it")
    assert capsys.readouterr().out == "the plan of it\n"

    def refuse(cfg):
        raise ConfigError("large_batch.global_batch_size", "is bad")

    monkeypatch.setattr(train, "describe_run", refuse)
    with pytest.raises(error, match=r"^ConfigError: large_batch\.global_batch_size: is bad$"):
        train.show_plan.__wrapped__("it")


def test_a_job_of_a_sweep_fails_alone(monkeypatch, caplog):
    """Hydra goes on with the others after an exception, not after SystemExit, and prints such a one in a line."""
    runtime = SimpleNamespace(runtime=SimpleNamespace(output_dir="some/where"), mode=RunMode.MULTIRUN)
    monkeypatch.setattr(HydraConfig, "get", lambda: runtime)
    monkeypatch.setattr(command, "set_up_console", lambda: None)
    monkeypatch.setattr(command, "claim_folder", lambda *args: None)

    def refuse(*args):
        raise ConfigError("optim.lr", "is bad")

    monkeypatch.setattr(train, "run", refuse)
    with pytest.raises(CompactHydraException, match=r"^ConfigError: optim\.lr: is bad$"):
        train.main.__wrapped__({})
    assert [r.getMessage() for r in caplog.records] == ["ConfigError: optim.lr: is bad"]


def test_the_process_group_ends_behind_all_ranks_and_what_holds_it(monkeypatch):
    done = []
    monkeypatch.setattr(command.gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(command.dist, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(command.dist, "destroy_process_group", lambda: done.append("destroy"))
    command.leave()
    assert done == ["collect", "barrier", "destroy"]
