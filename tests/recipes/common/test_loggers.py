"""metrics.csv of a run that is continued: what was there stays."""

import csv

import pytest

from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.loggers import build_loggers

BLOCKS = ("model", "data", "optim", "trainer", "checkpoint", "large_batch")


def log(folder, rows) -> list[dict]:
    """Log rows of step and metrics as one attempt of a run; the file afterwards."""
    settings = RunSettings.read({**{name: {} for name in BLOCKS}, "logger": {"csv": {}}}, "")
    [logger] = build_loggers(settings, folder)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.finalize("success")
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("torn", ["", "3,0.", "3"])
def test_a_second_attempt_goes_on_in_the_file(tmp_path, torn):
    assert log(tmp_path, [(0, {"loss": 3.0}), (1, {"loss": 2.0})]) == [
        {"loss": "3.0", "step": "0"},
        {"loss": "2.0", "step": "1"},
    ]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(torn)  # a process that was killed while it wrote
    rows = log(tmp_path, [(1, {"loss": 2.5}), (2, {"wer": 0.5})])
    assert [(row["step"], row["loss"], row["wer"]) for row in rows] == [
        ("0", "3.0", ""),
        ("1", "2.0", ""),
        ("1", "2.5", ""),
        ("2", "", "0.5"),
    ]


def test_a_file_without_a_line_begins_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("lo")
    assert log(tmp_path, [(0, {"loss": 3.0})]) == [{"loss": "3.0", "step": "0"}]


def test_other_ranks_leave_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    settings = RunSettings.read({**{name: {} for name in BLOCKS}, "logger": {"csv": {}}}, "")
    [logger] = build_loggers(settings, tmp_path)
    assert logger._experiment is None


def test_rows_are_counted_and_those_that_come_again_cut_off(tmp_path):
    log(tmp_path, [(0, {"loss": 3.0}), (1, {"loss": 2.0})])
    settings = RunSettings.read({**{name: {} for name in BLOCKS}, "logger": {"csv": {}}}, "")
    [logger] = build_loggers(settings, tmp_path)
    writer = logger.experiment
    assert writer.rows == 2
    logger.log_metrics({"loss": 1.0}, 2)
    logger.save()
    logger.log_metrics({"loss": 0.0}, 3)
    assert writer.rows == 3
    writer.cut(9)  # as many as there are
    assert writer.rows == 3
    writer.cut(1)
    assert writer.rows == 1
    assert [row["loss"] for row in log(tmp_path, [(1, {"loss": 2.5})])] == ["3.0", "2.5"]


def test_a_process_that_is_killed_while_a_column_is_added_loses_no_row(tmp_path, monkeypatch):
    log(tmp_path, [(0, {"loss": 3.0})])

    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerows", killed)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, [(1, {"wer": 0.5})])
    monkeypatch.undo()
    assert log(tmp_path, []) == [{"loss": "3.0", "step": "0"}]
