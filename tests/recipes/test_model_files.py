"""The commands that use a trained model, given one file instead of a run."""

import json

import pytest
from conftest import GOLDEN
from speech_files import write_corpus

from lightning_novograd.recipes.asr import evaluate, transcribe

TINY = str(GOLDEN / "models" / "quartznet_tiny.nemo")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), "test", 3)


def test_a_nemo_archive_is_evaluated_and_transcribes(manifest, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert evaluate.main([TINY, "--manifest", str(manifest), "--device", "cpu", "--out", str(out)]) == 0
    totals = json.loads(out.read_text())
    assert (totals["checkpoint"], totals["num_utterances"]) == (TINY, 3)
    capsys.readouterr()
    files = [u["audio_filepath"] for u in totals["utterances"]]
    assert transcribe.main([TINY, "--device", "cpu", *files]) == 0
    heard = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert heard == [u["hypothesis"] for u in totals["utterances"]]
    assert any(heard), "the archive's weights are used"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([TINY], f"error: --manifest: is needed: {TINY} is a model without a run, which would have sets\n"),
        ([TINY, "--checkpoint", "best"], f"error: {TINY} is one file: there is no checkpoint 'best' to choose\n"),
        (["lost.nemo"], "error: lost.nemo: cannot be read: No such file or directory\n"),
        (["lost.ckpt"], "error: checkpoint lost.ckpt does not exist\n"),
    ],
)
def test_what_a_file_cannot_do_is_one_line(arguments, problem, capsys):
    assert evaluate.main([*arguments, "--device", "cpu"]) == 1
    assert capsys.readouterr().err == problem
