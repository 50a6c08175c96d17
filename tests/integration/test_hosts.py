"""docs/hosts.md: each of its examples, as it stands there, makes the same optimizer steps as every other."""

import importlib.util
import json
import re

import pytest
import torch
from conftest import ROOT
from ranks import run_ranks

PAGE = (ROOT / "docs" / "hosts.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
# each optimizer step notes the LR that it sees; global batches are taken in order, and split over processes
BEFORE = """
from torch.optim.optimizer import register_optimizer_step_pre_hook

lrs = []
register_optimizer_step_pre_hook(lambda optimizer, *_: lrs.append(optimizer.param_groups[0]["lr"]))
"""
AFTER = """
import json, os
if os.environ.get("RANK", "0") == "0":
    weights = {name.removeprefix("module."): weight.tolist() for name, weight in model.state_dict().items()}
    with open("out.json", "w") as file:
        json.dump({"weights": weights, "lrs": lrs, "length": scheduler.state_dict()["arguments"]["max_steps"]}, file)
import ranks
ranks.leave()
"""
HUGGING_FACE = {
    "num_train_epochs=": "train_sampling_strategy='sequential', report_to=[], use_cpu=True, num_train_epochs=",
    "trainer.train()": "trainer.train(); scheduler = trainer.lr_scheduler",
}


def example(section: str) -> str:
    """The first block of Python code in a section, or before all sections."""
    text = SECTIONS[section] if section else PAGE.split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]


def changed(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert code.count(old) == 1, (old, code)
        code = code.replace(old, new)
    return code


def run(folder, section: str, changes: dict[str, str] | None = None, processes: int = 1, block: str = "") -> dict:
    """What `AFTER` notes of the page's example with `changes`, and with lines about its block, in as many processes."""
    script = folder / "example.py"
    script.write_text(BEFORE + example("") + block + changed(example(section), changes or {}) + AFTER, "utf-8")
    run_ranks(script, processes, cwd=folder, ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("plain"), "Plain torch")


def same(one: dict, other: dict) -> None:
    assert one["length"] == other["length"]
    assert one["lrs"] == pytest.approx(other["lrs"], rel=1e-12)
    for name, weight in other["weights"].items():
        # 18 steps, whose gradients are sums in another order
        torch.testing.assert_close(torch.tensor(one["weights"][name]), torch.tensor(weight), rtol=1e-4, atol=1e-5)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: make test-hosts")


def test_plain_torch_has_the_whole_schedule(plain):
    assert plain["length"] == len(plain["lrs"]) == 18
    assert plain["lrs"][:5] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert 0 < plain["lrs"][-1] < 0.001


def test_two_accumulated_batches_are_one(plain, tmp_path):
    changes = {"accumulation = 2": "accumulation = 1", "batch_size=4": "batch_size=8"}
    same(run(tmp_path, "Plain torch", changes), plain)


@pytest.mark.slow
def test_plain_torch_resumes(plain, tmp_path):
    """Saved and loaded after the first epoch, as the page says."""
    restart = """
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        torch.save({name: part.state_dict() for name, part in parts.items()}, "saved")
        saved = torch.load("saved", weights_only=True)
        model = Net()
        built = build_optimizers(block, model, max_steps=epochs * -(-len(loader) // accumulation))
        optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
        for name, thing in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            thing.load_state_dict(saved[name])
"""
    changes = {"for epoch in range(epochs):\n": f"for epoch in range(epochs):\n    if epoch == 1:{restart}"}
    resumed = run(tmp_path, "Plain torch", changes)
    assert resumed == plain


def test_the_scaler_lines_leave_out_skipped_steps():
    """The page's lines for float16, with a GradScaler on the CPU and an overflow in the second step."""
    lines = re.findall(r"^    ```python\n(.*?)^    ```", SECTIONS["Plain torch"], re.MULTILINE | re.DOTALL)[0]
    lines = lines[lines.index("    scaler.scale(loss)") :]  # of a scaler and a loss of the test's own
    names: dict = {}
    exec(example(""), names)
    built = names["build_optimizers"](names["block"], names["model"], max_steps=6)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    scaler = torch.amp.GradScaler("cpu")
    for step in range(4):
        optimizer.zero_grad()
        loss = names["model"](torch.ones(2, 6), torch.tensor([0, 1]))["loss"]
        loss = loss * float("inf") if step == 1 else loss
        exec(re.sub("^    ", "", lines, flags=re.MULTILINE), {**names, **locals()})
    assert scheduler.last_epoch == 3


@pytest.mark.slow  # that the page's code runs at all is tested with the pages
@pytest.mark.parametrize("processes", [1, 2])
def test_fabric(plain, tmp_path, processes):
    changes = {"devices=1": f"devices={processes}", "accumulation = 2": f"accumulation = {2 // processes}"}
    same(run(tmp_path, "Fabric", changes, processes), plain)


@pytest.mark.slow
def test_fabric_resumes(plain, tmp_path):
    """With fabric.save and fabric.load, as the page says."""
    restart = """
        fabric.save("saved", {"model": module, "optimizer": optimizer, "scheduler": scheduler})
        model = Net()
        built = build_optimizers(block, model, max_steps=epochs * -(-len(loader) // accumulation))
        module, optimizer = fabric.setup(model, built["optimizer"])
        scheduler = built["lr_scheduler"]["scheduler"]
        fabric.load("saved", {"model": module, "optimizer": optimizer, "scheduler": scheduler})
"""
    changes = {"for epoch in range(epochs):\n": f"for epoch in range(epochs):\n    if epoch == 1:{restart}"}
    assert run(tmp_path, "Fabric", changes) == plain


@pytest.mark.parametrize("processes", [1, 2])
def test_hugging_face_trainer(plain, tmp_path, processes):
    needs("transformers")
    accumulation = {"gradient_accumulation_steps=2": f"gradient_accumulation_steps={2 // processes}"}
    same(run(tmp_path, "Hugging Face Trainer", {**HUGGING_FACE, **accumulation}, processes), plain)


def test_hugging_face_trainer_resumes(plain, tmp_path):
    needs("transformers")
    again = """trainer.train()
lrs, model = lrs[:12], Net()
trainer = BlockTrainer(model, args, train_dataset=data, optim=block)
trainer.train(resume_from_checkpoint="output/checkpoint-12")
scheduler = trainer.lr_scheduler
"""
    changes = {**HUGGING_FACE, "trainer.train()": again, "max_grad_norm=0": "max_grad_norm=0, save_steps=12"}
    same(run(tmp_path, "Hugging Face Trainer", changes), plain)


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate(plain, tmp_path, processes):
    needs("accelerate")
    accumulation = {
        "Accelerator(gradient_accumulation_steps=2": f"Accelerator(gradient_accumulation_steps={2 // processes}"
    }
    same(run(tmp_path, "Accelerate", accumulation, processes), plain)


def test_accelerate_resumes(plain, tmp_path):
    needs("accelerate")
    restart = """
        accelerator.save_state("saved")
        for parameter in model.parameters():
            parameter.data.zero_()
        optimizer.param_groups[0]["lr"] = 7.0
        accelerator.load_state("saved")
"""
    changes = {"for epoch in range(epochs):\n": f"for epoch in range(epochs):\n    if epoch == 1:{restart}"}
    same(run(tmp_path, "Accelerate", changes), plain)


COMPOSITE = """
block["larc"] = {"allow_grad_clip": True}
block["param_groups"] = [{"match": "layers.2.*", "optimizer": {"name": "adamw", "lr": 0.01}}]
"""


@pytest.fixture(scope="module")
def plain_composite(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("composite"), "Plain torch", block=COMPOSITE)


@pytest.mark.parametrize(
    ("section", "package", "changes"),
    [
        pytest.param("Fabric", "lightning", {}, marks=pytest.mark.slow),
        ("Hugging Face Trainer", "transformers", HUGGING_FACE),
        ("Accelerate", "accelerate", {}),
    ],
)
def test_two_optimizers_under_larc(plain, plain_composite, tmp_path, section, package, changes):
    """What hosts wrap, copy and load is then a LARC around a Composite."""
    needs(package)
    assert plain_composite["weights"] != plain["weights"]
    hosted = run(tmp_path, section, changes, block=COMPOSITE)
    # the hook is on each optimizer, the parts too
    assert hosted["lrs"] == pytest.approx(plain_composite["lrs"])
    same(hosted, plain_composite)


def test_what_the_page_says_of_accelerates_default(plain, tmp_path):
    """On two processes the schedule makes two steps for each of the optimizer."""
    needs("accelerate")
    changes = {
        "gradient_accumulation_steps=2, step_scheduler_with_optimizer=False": "gradient_accumulation_steps=1",
        "if accelerator.sync_gradients and not optimizer.step_was_skipped:": "if True:",
    }
    lrs = run(tmp_path, "Accelerate", changes, 2)["lrs"]
    assert lrs[:9] == pytest.approx(plain["lrs"][::2])
    assert lrs[9:] == [0.0] * 9


def test_every_host_has_an_example():
    assert set(SECTIONS) == {"Plain torch", "Fabric", "Hugging Face Trainer", "Accelerate"}
    for section in SECTIONS:
        compile(example("") + example(section), section, "exec")
