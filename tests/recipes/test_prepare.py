"""The command that prepares a corpus."""

import pytest

from lightning_novograd.recipes.asr.data.corpora.librispeech import LibriSpeech
from lightning_novograd.recipes.asr.prepare import main

SIZES = ["train_size=3", "dev_size=2", "test_size=1"]


def test_a_corpus_in_a_folder_of_ones_own(shared_data, tmp_path, capsys):
    arguments = ["fsdd", "--root", str(shared_data), "--out", str(tmp_path / "digits"), *SIZES]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"dev: 2 utterances in {tmp_path}/digits/dev.json" in printed
    assert f"train with: data=manifest data.train={tmp_path}/digits/train.json" in printed
    assert len(list((tmp_path / "digits" / "audio" / "train").iterdir())) == 3
    assert main(arguments) == 0, "once it is there it stays"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fsdd"], "error: fsdd.root: is missing: give a clone of https://"),
        (["fsdd", "--root", "nowhere"], "error: no recordings of the Free Spoken Digit Dataset in nowhere"),
        (["fsdd", "--root", ".", "trainsize=3"], "error: fsdd.trainsize: unknown key; did you mean 'train_size'?"),
        (["fsdd", "--root", ".", "train_size"], "error: fsdd.train_size: must be a whole number, not None"),
        (["fsdd", "--root", ".", "train_size=few"], "error: fsdd.train_size: must be a whole number, not 'few'"),
    ],
    ids=["no root", "no recordings", "unknown option", "no value", "wrong type"],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_only_corpora_that_are_made(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["manifest", "--out", str(tmp_path)])
    assert "invalid choice: 'manifest'" in capsys.readouterr().err


def test_help(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    summary = "Prepare a corpus: ``python -m lightning_novograd.recipes.asr.prepare fsdd --root CLONE --out DIR``."
    assert printed[:3] == [
        "usage: prepare [-h] [--root ROOT] --out OUT {an4,espeak_digits,fsdd,librispeech} [KEY=VALUE ...]",
        "",
        summary,
    ]
    assert set(printed) >= {
        "{an4,espeak_digits,fsdd,librispeech}",
        "KEY=VALUE options of the corpus, such as train_size=500",
        "--root ROOT where the source of the corpus lies",
        "--out OUT folder to make; it must be new, or hold this corpus",
    }


def test_everything_that_is_printed(shared_data, tmp_path, monkeypatch, capsys):
    """A folder may begin at home; a KEY=VALUE may stand before the options."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["fsdd", *SIZES, "--root", str(shared_data), "--out", "~/digits"]) == 0
    folder = tmp_path / "digits"
    sizes = {"train": 3, "dev": 2, "test": 1}
    assert capsys.readouterr().out.splitlines() == [
        *(f"{split}: {size} utterances in {folder}/{split}.json" for split, size in sizes.items()),
        "train with: data=manifest " + " ".join(f"data.{split}={folder}/{split}.json" for split in sizes),
    ]


def test_the_folder_of_the_corpus_is_not_optional(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fsdd"])
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_ctrl_c_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(LibriSpeech, "prepare_in", interrupted)
    assert main(["librispeech", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
