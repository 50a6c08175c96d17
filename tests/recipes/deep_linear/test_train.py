"""The command: its table, its files."""

import pytest

from lightning_novograd.recipes.deep_linear import train as command
from lightning_novograd.recipes.deep_linear.network import Run


def test_table_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "LRS", (0.1, 1.0))
    monkeypatch.setattr(command, "WEIGHT_DECAYS", (0.0, 0.1))
    monkeypatch.setattr(command, "STARTS", (-1.0, 4.0))
    assert command.main(["--out", str(tmp_path / "new"), "--steps", "12"]) == 0
    said, written = capsys.readouterr().out, (tmp_path / "new" / "table.md").read_text()
    assert written in said
    rows = [line.split("|")[1:-1] for line in written.splitlines() if line.startswith("| lr")]
    assert len(rows) == 4
    assert [len(row) for row in rows] == [6] * 4, "a setting, four optimizers, the paper"
    assert "| 4 learning rates and weight decays |" in written
    names = {"baseline", "high_lr", "high_weight_decay", "bad_start", "map_settings", "map_starts"}
    pictures = {path.stem: path.read_bytes()[:8] for path in (tmp_path / "new").glob("*.png")}
    assert pictures == dict.fromkeys(names, b"\x89PNG\r\n\x1a\n")


def test_what_a_cell_says():
    assert command.outcome(Run([(4.0, 5.0), (1.0, 3.0)], diverged=False)) == "2.000, 4e+02"
    assert command.outcome(Run([(4.0, 5.0), (1.0, 3.0)], diverged=True)) == "diverges at step 2"


def test_a_number_of_steps_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--steps", "0"])
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err
