"""The YAML of docs/migration.md is understood, and means what the guide says."""

import re

import pytest
import torch
import yaml
from conftest import ROOT

from lightning_novograd import LARC, build_optimizers, parse_optim
from lightning_novograd.config.several import build_blocks, parse_blocks
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import get_scheduler

GUIDE = (ROOT / "docs" / "migration.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))


def block(section):
    [text] = re.findall(r"```yaml\n(optim:\n.*?)```", SECTIONS[section], re.DOTALL)
    return yaml.safe_load(text)["optim"]


def built(optim, module=None):
    return build_optimizers(optim, module or torch.nn.Linear(2, 2), max_steps=100)


def test_every_project_has_a_section():
    assert set(SECTIONS) == {"NeMo", "apex", "OpenSeq2Seq", "timm", "torchtitan", "mmengine"}


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


def test_torchtitan_entries_are_rules():
    model = torch.nn.ModuleDict({"layers": torch.nn.Sequential(torch.nn.Linear(2, 2)), "head": torch.nn.Linear(2, 2)})
    optimizer = built(block("torchtitan"), model)["optimizer"]
    assert [type(part).__name__ for part in optimizer.optimizers] == ["AdamW", "Muon"]
    decay = {name: group["weight_decay"] for group in optimizer.param_groups if (name := group["name"]) == "bias,norm"}
    assert decay == {"bias,norm": 0.0}


def yaml_below(heading):
    [text] = re.findall(rf"^## {heading}\n.*?```yaml\n(.*?)```", GUIDE, re.MULTILINE | re.DOTALL)[:1]
    return yaml.safe_load(text)


def test_several_optimizers_have_a_block_each():
    model = torch.nn.ModuleDict({"net": torch.nn.ModuleDict({"decoder": torch.nn.Linear(2, 2)})})
    model["critic"] = torch.nn.Linear(2, 1)
    configs = parse_blocks(yaml_below("Several optimizers")["optim"])
    blocks = build_blocks(configs, model, lambda config: 100)
    owned = {name: {*one["optimizer"].param_groups[0]["params"]} for name, one in blocks.items()}
    assert owned == {
        "generator": {*model["net"]["decoder"].parameters()},
        "critic": {*model["critic"].parameters()},
    }
    assert [config.sched.steps_per_batch for config in configs.values()] == [None, 5.0]


def test_megatrons_ramp_is_one_of_stages():
    large_batch = yaml_below("The global batch")["large_batch"]
    parse_optim({"name": "sgd", "large_batch": large_batch})
    # Megatron's rule: an even share of the samples for each increment
    start, increment, samples, whole = 256, 256, 768_000, 1024
    share, consumed, stages = samples / ((whole - start) / increment), 0, []
    for step in range(3000):
        batch = whole if consumed > samples else start + int(consumed / share) * increment
        if not stages or stages[-1][1] != batch:
            stages.append([step, batch])
        consumed += batch
    assert stages == large_batch["global_batch_size"]


def test_mmengines_paramwise_cfg_is_no_decay_and_a_factor():
    backbone = torch.nn.Sequential(
        torch.nn.Conv1d(4, 4, 3, groups=4), torch.nn.BatchNorm1d(4), torch.nn.Conv1d(4, 4, 1)
    )
    model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(4, 2)})
    groups = built(block("mmengine"), model)["optimizer"].param_groups
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {backbone[2].weight, model["head"].weight}
    slow = {p for group in groups if group["lr"] == pytest.approx(1e-4) for p in group["params"]}
    assert slow == {*backbone.parameters()}


ROWS = re.findall(r"^\| `(\{name: .*\})` \| .+ \| `(\{name: .*\})` \|$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize(("refused", "instead"), ROWS)
def test_numbers_are_refused_and_can_be_written_otherwise(refused, instead):
    with pytest.raises(ConfigError):
        parse_optim(yaml.safe_load(refused))
    built(yaml.safe_load(instead))


def test_there_are_such_rows():
    assert len(ROWS) >= 10


def test_adafactor_is_nemos_with_the_root_of_its_eps():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Linear(7, 5, bias=False)
    module.weight.data.copy_(weight)
    optimizer = built({"name": "adafactor", "lr": 0.01, "eps": [1.0e-15, 1.0e-3]}, module)["optimizer"]
    row, column = torch.zeros(5), torch.zeros(7)
    for step in range(1, 20):
        grad = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        module.weight.grad = grad.clone()
        optimizer.step()
        # the formula of fairseq, relative_step and scale_parameter on
        lr = max(1e-3, weight.norm().item() / 35**0.5) * min(1e-2, step**-0.5)
        share, square = step**-0.8, grad.square() + 1e-30
        row, column = row.lerp(square.mean(1), share), column.lerp(square.mean(0), share)
        update = grad * (row / row.mean()).rsqrt()[:, None] * column.rsqrt()
        weight = weight - update * lr / max(1.0, update.norm().item() / 35**0.5)
    # weights below 4 that have moved by 19 steps, each rounded to 2**-23 of them or so
    torch.testing.assert_close(module.weight.detach(), weight, rtol=0, atol=19 * 4 * 2**-23)


def test_what_the_guide_says_of_float16():
    names = re.search(r"default `eps` of ([\w, \n]+) is 0, and", GUIDE)[1]
    module = torch.nn.Embedding(2, 2, sparse=True).half()  # which SparseAdam takes too
    said = set(re.findall(r"[A-Z]\w+", names))
    for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "SparseAdam", "SGD", "Adafactor"):
        if name in said:
            with pytest.raises(ConfigError, match="is 0 in float16"):
                built({"name": name}, module)
        else:
            built({"name": name}, module)
    assert len(said) == 8


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]\w+(?:Annealing|Policy|Decay|LR|Plateau))`", GUIDE))))
def test_schedules_that_the_guide_names_exist(name):
    assert get_scheduler(name).name == name


def test_links_lead_somewhere():
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", GUIDE)):
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / target).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, (target, anchor)
