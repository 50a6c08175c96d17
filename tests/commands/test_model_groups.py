"""`describe --model`: which parameters of a model an optim block puts where."""

import pytest

from lightning_novograd.__main__ import main

MODEL = """
from torch import nn

def small():
    print("made")
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))

class Wide(nn.Linear):
    pass

class OfFile(nn.Sequential):
    def __init__(self, cfg):
        super().__init__(nn.Linear(2, cfg.width), nn.Linear(cfg.width, 1))
        assert cfg.optim.name == "novograd"

def of_keys(optim, width, *rest, bias=True, **others):
    assert optim["name"] == "novograd"
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))

number = lambda: 3

def broken():
    raise KeyError("vocabulary")
"""
BLOCK = "optim: {name: novograd, lr: 0.05, layer_decay: 0.5, param_groups: [{match: '1.weight', optimizer: adamw}]}"


@pytest.fixture
def describe(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)

    def run(model, *rest, block=BLOCK):
        (tmp_path / "conf.yaml").write_text(block)
        status = main(["describe", "--model", model, *(rest or [str(tmp_path / "conf.yaml")])])
        return status, *capsys.readouterr()

    return run


def test_the_table_and_the_names(describe):
    status, out, err = describe("some_models:small")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["group", "tensors", "elements", "lr", "weight", "decay", "optimizer"],
        ["default", "1", "1", "0.05", "0", "NovoGrad"],
        ["default,", "lr", "x", "0.5", "2", "9", "0.025", "0", "NovoGrad"],
        ["1.weight", "1", "3", "0.001", "0.01", "AdamW"],
        [],
        ["default:", "1.bias"],
        [],
        ["default,", "lr", "x", "0.5:", "0.weight,", "0.bias"],
        [],
        ["1.weight:", "1.weight"],
    ]


@pytest.mark.parametrize("model", ["OfFile", "of_keys"])
def test_a_model_is_given_what_the_file_has(model, describe):
    assert describe(f"some_models:{model}", block=f"{BLOCK}\nwidth: 3") == describe("some_models:small")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("some_models", "expected module:Class, got 'some_models'"),
        ("no_models:small", "ModuleNotFoundError: No module named 'no_models'"),
        ("some_models:tiny", "AttributeError: module 'some_models' has no attribute 'tiny'"),
        ("some_models:number", "some_models:number() is a int, not a torch.nn.Module"),
        ("some_models:broken", "cannot be made: KeyError: 'vocabulary'"),
        ("some_models:Wide", "name a function without arguments that returns the model"),
    ],
)
def test_a_model_that_cannot_be_made_is_one_line(model, said, describe):
    status, out, err = describe(model)
    assert (status, out) == (2, "")
    assert err.startswith("error: --model: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_block_that_does_not_fit_is_one_line(describe):
    status, out, err = describe("some_models:small", block="{name: sgd, no_decay: ['2.weight']}")
    assert (status, out) == (2, "")
    assert err.startswith("error: optim.no_decay: '2.weight' matches no parameter")


def test_it_needs_a_config(describe):
    status, _, err = describe("some_models:small", "a.yaml", "b.yaml")
    assert (status, err) == (2, "error: --model: give one YAML file with the optim block\n")


GAN = """
from torch import nn

class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3))
        self.scale = nn.Linear(1, 1, bias=False)
"""


@pytest.fixture
def gan(describe, tmp_path):
    (tmp_path / "some_gan.py").write_text(GAN)
    return lambda block: describe("some_gan:Gan", block=block)


def test_a_block_for_a_submodule_has_its_parameters_alone(gan):
    status, out, err = gan("optim: {name: adam, module: generator, no_decay: [0.bias]}")
    assert (status, err) == (0, "")
    assert out.split("\n\n")[1:] == [
        "default: 0.weight",
        "default, no decay: 0.bias",
        "no optimizer: discriminator.0.weight, discriminator.0.bias, scale.weight\n",
    ]
    status, _, err = gan("optim: {name: adam, module: generatr}")
    assert (status, err.count("\n")) == (2, 1)
    assert "optim.module: Gan has no submodule 'generatr'; did you mean 'generator'?" in err


def test_several_blocks_have_a_table_each(gan):
    status, out, err = gan("optim: {generator: {name: adam, lr: 0.1}, d: {name: sgd, lr: 0.2, module: discriminator}}")
    assert (status, err) == (0, "")
    paragraphs = [[line.split() for line in paragraph.splitlines()] for paragraph in out.split("\n\n")]
    assert paragraphs == [
        [
            ["generator:"],
            ["group", "tensors", "elements", "lr", "weight", "decay", "optimizer"],
            ["default", "2", "6", "0.1", "0", "Adam"],
        ],
        [["default:", "0.weight,", "0.bias"]],
        [
            ["d,", "of", "discriminator:"],
            ["group", "tensors", "elements", "lr", "weight", "decay", "optimizer"],
            ["default", "2", "9", "0.2", "0", "SGD"],
        ],
        [["default:", "0.weight,", "0.bias"]],
        [["no", "optimizer:", "scale.weight"]],
    ]


def test_blocks_that_share_a_parameter_are_refused_as_in_a_run(gan):
    status, _, err = gan("optim: {generator: {name: adam}, again: {name: sgd, module: generator}}")
    assert (status, err.count("\n")) == (2, 1)
    assert "optim.again.module: 'generator.0.weight' is optimized by optim.generator already" in err
