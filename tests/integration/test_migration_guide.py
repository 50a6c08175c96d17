"""The YAML of docs/migration.md is understood, and means what the guide says."""

import re

import pytest
import torch
import yaml
from conftest import ROOT

from lightning_novograd import LARC, build_optimizers, parse_optim
from lightning_novograd.registry import get_scheduler

GUIDE = (ROOT / "docs" / "migration.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))


def block(section):
    [text] = re.findall(r"```yaml\n(optim:\n.*?)```", SECTIONS[section], re.DOTALL)
    return yaml.safe_load(text)["optim"]


def built(optim, module=None):
    return build_optimizers(optim, module or torch.nn.Linear(2, 2), max_steps=100)


def test_every_project_has_a_section():
    assert set(SECTIONS) == {"NeMo", "apex", "OpenSeq2Seq", "timm"}


def test_nemo_registered_names_are_those_of_the_registry():
    optim = block("NeMo")  # for NeMo's eyes; here it has no prefix
    optim["name"] = optim["name"].removeprefix("lightning_")
    optim["sched"]["name"] = optim["sched"]["name"].removeprefix("lightning_")
    assert parse_optim(optim).name == "NovoGrad"


def test_apex_larc_keeps_its_rule_around_sgd():
    optimizer = built(block("apex"))["optimizer"]
    assert isinstance(optimizer, LARC)
    assert optimizer.target == "gradient"


def test_openseq2seq_keys_are_taken():
    config = parse_optim(block("OpenSeq2Seq"))
    assert config.larc.args["trust_coefficient"] == 0.001
    assert config.larc.args["clip"] is True
    assert config.sched.name == "PolyDecay"


def test_timm_filters_bias_and_norm_parameters_alike():
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    groups = built(block("timm"), model)["optimizer"].param_groups
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {model[0].weight, model[2].weight}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+(?:Annealing|Policy|Decay|LR|Plateau))`", GUIDE))))
def test_schedules_that_the_guide_names_exist(name):
    assert get_scheduler(name).name == name


def test_links_lead_somewhere():
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", GUIDE)):
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / target).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, (target, anchor)
