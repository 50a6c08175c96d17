"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import lightning_novograd

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightning_novograd.__path__, "lightning_novograd.")
    if not module.ispkg and not module.name.startswith(("lightning_novograd.conf.", "lightning_novograd.recipes."))
]
NEEDS = {
    "lightning_novograd.optim.novograd.cuda": "triton",
    "lightning_novograd.optim.kernels.cuda.novograd": "triton",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0


def test_the_examples_are_found():
    examples = doctest.DocTestFinder().find(importlib.import_module("lightning_novograd.config.pipeline"))
    assert [example.name for example in examples if example.examples] == [
        "lightning_novograd.config.pipeline.build_optimizers",
        "lightning_novograd.config.pipeline.parse_optim",
    ]
    assert lightning_novograd.__doc__
