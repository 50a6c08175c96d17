"""What `plot-schedule` draws, and how it refuses."""

import warnings

import pytest

from lightning_novograd.__main__ import main
from lightning_novograd.commands import plot_schedule as command


@pytest.fixture
def plot(tmp_path, monkeypatch, capsys):
    """`plot(yaml, *options)` -> exit status, stdout, stderr, and the axes that were drawn, or None."""
    drawn = []

    def keep(*args, **kwargs):
        drawn.append(plot_schedules(*args, **kwargs))
        return drawn[-1]

    plot_schedules = command.plot_schedules
    monkeypatch.setattr(command, "plot_schedules", keep)
    monkeypatch.chdir(tmp_path)

    def run(text, *options):
        (tmp_path / "conf.yaml").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            status = main(["plot-schedule", "conf.yaml", "--out", "lr.png", *options])
        printed = capsys.readouterr()
        return status, printed.out, printed.err, drawn[-1].axes[0] if drawn else None

    return run


def refused(result):
    status, out, err, _ = result
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")
