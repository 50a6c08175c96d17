"""Arguments that the commands for trained models share."""

from pathlib import Path

import pytest

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.arguments import at_least, check_file, make_parser


def test_the_smallest_batch_is_one():
    assert at_least(1)("1") == 1


def test_what_is_no_number_is_said_so(capsys):
    parser = make_parser("listen", None)
    parser.add_argument("--batch-size", type=at_least(1))
    for given, problem in (("x", "invalid int value: 'x'"), ("0", "must be at least 1, not 0")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["run", "--batch-size", given])
        assert capsys.readouterr().err.endswith(f"argument --batch-size: {problem}\n")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lost/a.json", "the folder of NAME does not exist"),
        (".", "NAME cannot be written: Is a directory"),
        ("a" * 300, "NAME cannot be written: File name too long"),
    ],
)
def test_places_that_cannot_be_written_are_found_before_any_work(tmp_path, name, problem):
    with pytest.raises(ConfigError) as error:
        check_file(tmp_path / name)
    assert (error.value.path, error.value.problem) == ("--out", problem.replace("NAME", str(tmp_path / name)))
    check_file(tmp_path / "a.json")


def test_the_arguments_of_every_command():
    parser = make_parser("listen", "Listen to ``x``.\n\nAt ``length``.\n")
    assert (parser.prog, parser.description, parser.epilog) == ("listen", "Listen to x.", "\nAt length.\n")
    assert make_parser("listen", None).description == ""
    arguments = parser.parse_args(["a"])
    assert vars(arguments) == {"run": Path("a"), "checkpoint": None, "downmix": False, "device": "auto"}
    for device in ("auto", "cpu", "cuda"):
        assert parser.parse_args(["a", "--device", device]).device == device
    with pytest.raises(SystemExit):
        parser.parse_args(["a", "--device", "tpu"])
