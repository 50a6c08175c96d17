"""README.md says what the files and presets say, and stays short."""

import importlib.util
import re

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

README = (ROOT / "README.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_it_is_read_in_five_minutes():
    assert len(README.splitlines()) < 150


def test_the_whole_file_is_the_example():
    assert f"```python\n{(ROOT / 'examples/first.py').read_text('utf-8')}```" in README


def test_every_link_leads_to_a_file():
    links = [target.split("#")[0] for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)]
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_badges_are_those_of_the_requirements():
    path = ROOT / "docs" / "_site" / "badges.py"
    spec = importlib.util.spec_from_file_location("badges", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, svg in module.badges().items():
        assert (ROOT / "docs" / "pictures" / name).read_text("utf-8") == svg
        label = re.search(r'aria-label="\w+ ([^"]+)"', svg)[1]
        assert re.search(rf"!\[[^]]*{re.escape(label)}\]\(docs/pictures/{name}\)", README)


@pytest.mark.parametrize("row", table("Starting values for NovoGrad"), ids=lambda row: row[-1].strip("`"))
def test_starting_values_are_the_presets(row):
    _, batch, lr, betas, weight_decay, warmup, preset = row
    text = (ROOT / "conf" / "optim" / f"{preset.strip('`')}.yaml").read_text("utf-8")
    block = OmegaConf.to_container(OmegaConf.create(text))
    assert [block["lr"], block["weight_decay"]] == [float(lr), float(weight_decay)]
    assert block["betas"] == [float(beta) for beta in betas.split(",")]
    sched = block["sched"]
    if warmup == "none":
        assert (sched["warmup_steps"], sched["warmup_ratio"]) == (None, None)
    elif "%" in warmup:
        assert sched["warmup_ratio"] == pytest.approx(float(warmup.split("%")[0]) / 100, abs=0.0005)
    else:
        assert sched["warmup_steps"] == int(warmup.removesuffix(" steps"))
    if "to" not in batch:  # that of the small ones is ours
        said = batch.removesuffix(" tokens")
        assert said in text or f"{int(said) // 1024}K" in text
