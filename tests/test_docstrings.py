"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import lightning_novograd

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = [
    module.name
    for folder in ("", "optim.")
    for module in pkgutil.iter_modules(
        importlib.import_module(f"lightning_novograd.{folder}".rstrip(".")).__path__, f"lightning_novograd.{folder}"
    )
    if not module.ispkg
]
NEEDS = {"lightning_novograd.optim.fused_cuda": "triton", "lightning_novograd.optim.cuda_kernels": "triton"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0


def test_the_examples_are_found():
    examples = doctest.DocTestFinder().find(importlib.import_module("lightning_novograd.factory"))
    assert [example.name for example in examples if example.examples] == ["lightning_novograd.factory.build_optimizers"]
    assert lightning_novograd.__doc__
