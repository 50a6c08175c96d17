"""What patterns select among a module's parameters."""

import re
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
from torch import nn

from lightning_novograd.optim import selection
from lightning_novograd.optim.param_groups import ParamGroupRule, build_param_groups
from lightning_novograd.optim.selection import Names, Uses

NAMES = ["a", "a.b", "a.b", "ab", "A", "b.a", "a[0]", "a.b.c", ""]


@pytest.mark.parametrize(
    "glob", ["a", "a*", "*a*", "a.*", "a[[]0]", "[ab]*", "?", "a.?", "*", "", "B*", "a[!.]*", "zz*"]
)
def test_names_match_as_by_fnmatch(glob):
    assert Names(NAMES).matching(glob) == {index for index, name in enumerate(NAMES) if fnmatchcase(name, glob)}


def test_no_patterns_select_everything():
    uses = Uses(nn.Linear(2, 2))
    assert uses.meeting((), ()) == {0, 1}
    assert uses.meeting((), ("LayerNorm",)) == uses.meeting(("bias",), ("LayerNorm",)) == set()


def test_a_pattern_is_compared_once_and_with_names_that_begin_as_it_does(monkeypatch):
    """Work is linear in rules and parameters, whatever the number of either."""
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(300))
    patterns, compared = [], []

    class Pattern:
        def __init__(self, glob):
            patterns.append(glob)
            self.glob = glob

        def match(self, name):
            compared.append(name)
            return fnmatchcase(name, self.glob)

    monkeypatch.setattr(selection, "re", SimpleNamespace(compile=Pattern, split=re.split))
    monkeypatch.setattr(selection, "translate", lambda glob: glob)
    rules = [ParamGroupRule(match=(glob,)) for glob in (*(f"layers.{i}.*" for i in range(200)), "*.weight")]
    groups = build_param_groups(model, rules, no_decay=["*.weight"])
    assert len(groups) == 402
    assert sorted(patterns) == sorted(rule.match[0] for rule in rules)
    assert len(compared) == 2 * 200 + 600
