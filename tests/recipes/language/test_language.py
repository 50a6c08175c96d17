"""The language recipe: its model, its text, a batch that it learns by heart, a run."""

import math

import pytest
import torch
from hydra import compose, initialize_config_module
from torch.nn import functional as F

from lightning_novograd.config import build_optimizers
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.batches.memory import count_parameters
from lightning_novograd.recipes.common.tasks.run import run
from lightning_novograd.recipes.language import text
from lightning_novograd.recipes.language.data import CHARACTERS, Sequences, TextData, encode
from lightning_novograd.recipes.language.model import Transformer, TransformerConfig
from lightning_novograd.recipes.language.module import LANGUAGE, LanguageModule

SMALL = {"length": 16, "width": 16, "layers": 1, "heads": 2}


def test_no_character_sees_a_later_one():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SMALL)).eval()
    x = torch.randint(97, (2, 16))
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 97
    before, after = model(x), model(changed)
    assert before.shape == (2, 16, 97)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9], after[:, 9])


def test_the_recipes_model_has_its_size():
    with torch.device("meta"):
        model = Transformer(TransformerConfig())
    assert count_parameters(model) == 357_312
    assert TransformerConfig().classes == len(CHARACTERS) == 97


def test_a_new_model_knows_nothing():
    torch.manual_seed(0)
    module = LanguageModule(SMALL)
    losses_B, bits_B = module.measure(module(torch.randint(97, (4, 16))), torch.randint(97, (4, 16)))
    assert losses_B.shape == bits_B.shape == (4,)
    assert losses_B.mean().item() == pytest.approx(math.log(97), rel=0.02)
    assert torch.equal(bits_B, losses_B / math.log(2))


def test_what_is_measured_is_the_mean_over_characters():
    logits, targets = torch.randn(2, 5, 97), torch.randint(97, (2, 5))
    losses_B, _ = LanguageModule(SMALL).measure(logits, targets)
    torch.testing.assert_close(losses_B.mean(), F.cross_entropy(logits.reshape(10, 97), targets.reshape(10)))


def test_heads_that_cannot_share():
    with pytest.raises(ConfigError, match=r"^model\.heads: 5 heads cannot share a width of 96 equally"):
        TransformerConfig.read({"heads": 5}, "model")


def test_a_document_is_in_one_set_whatever_the_python():
    names = [f"module{i}" for i in range(1000)]
    counts = {split: sum(text.split_of(name) == split for name in names) for split in ("train", "dev", "test")}
    assert sum(counts.values()) == 1000
    assert 40 < counts["dev"] < 80
    assert 40 < counts["test"] < 80
    assert (text.split_of("logging"), text.split_of("inspect"), text.split_of("asyncio")) == ("dev", "test", "train")


def test_texts_come_from_sources_alone(tmp_path, monkeypatch):
    (tmp_path / "pack" / "tests").mkdir(parents=True)
    (tmp_path / "tkinter").mkdir()
    (tmp_path / "config-3-x").mkdir()
    source = (
        'raise ImportError\ndef f():\n    "Of f."\n    class C:\n        "Of C."\nif 1:\n    async def g(): "Of g."\n'
    )
    for name in ("b.py", "pack/a.py", "pack/tests/t.py", "tkinter/t.py", "config-3-x/c.py"):
        (tmp_path / name).write_text(source)
    (tmp_path / "empty.py").write_text("1")
    (tmp_path / "broken.py").write_text('"""Doc."""\nif:')
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    found = list(text.documents())
    assert [name for name, _ in found if not name.startswith("topic ")] == ["b", "pack"]
    assert found[-1][1] == "Of f.\n\nOf C.\n\nOf g."
    assert len(found) > 50, "topics"
    assert [name for name, _ in found] == [name for name, _ in text.documents()]


def test_every_character_is_predicted_once_in_an_evaluation():
    letters = torch.arange(50, dtype=torch.uint8)
    sequences = Sequences(letters, 8)
    x, y = sequences.take(range(len(sequences)), 5)
    assert (len(sequences), x.dtype, x.shape) == (6, torch.int64, (6, 8))
    assert x.flatten().tolist() == list(range(48))
    assert y.flatten().tolist() == list(range(1, 49))


def test_epochs_begin_elsewhere():
    letters = torch.arange(50, dtype=torch.uint8)
    sequences = Sequences(letters, 8, seed=1)
    firsts = {sequences.take(range(len(sequences)), epoch)[0][0, 0].item() for epoch in range(50)}
    assert firsts == set(range(8))
    for epoch in range(50):
        x, y = sequences.take(range(len(sequences)), epoch)
        assert torch.equal(y, x + 1)
    with pytest.raises(DataError, match="a text of 15 characters is too short for sequences of 8"):
        Sequences(letters[:15], 8)


def test_a_part_of_the_training_text(monkeypatch):
    texts = {"train": "ab" * 40, "dev": "c" * 30, "test": "d" * 30}
    monkeypatch.setattr("lightning_novograd.recipes.language.data.read_texts", lambda: texts)
    sets = TextData(length=8, train_size=40).sets(seed=1)
    assert {name: len(sequences) for name, sequences in sets.items()} == {"train": 4, "dev": 3, "test": 3}
    assert torch.equal(sets["train"].text_N, encode("ab" * 20))


@pytest.mark.parametrize("name", ["novograd", "adamw"])
def test_a_batch_is_learned_by_heart(name):
    torch.manual_seed(0)
    module = LanguageModule({"length": 16, "width": 32, "layers": 1, "heads": 2})
    optimizer = build_optimizers({"name": name, "lr": 0.02}, module)["optimizer"]
    x = torch.randint(97, (4, 17))
    losses = []
    for _ in range(80):
        losses_B, _ = module.measure(module(x[:, :-1]), x[:, 1:])
        optimizer.zero_grad()
        losses_B.mean().backward()
        optimizer.step()
        losses.append(losses_B.mean().item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    model = ["model.width=32", "model.layers=1", "data.length=64", "data.train_size=200000"]
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        cfg = compose("language", overrides=model)
    results = run(LANGUAGE, cfg, tmp_path)
    assert results["test_bpc"] < 4.5, "6.6 bits is knowing nothing"
    assert results["test_bpc"] == pytest.approx(results["test_loss"] / math.log(2))
    assert results["epochs"] == 1


@pytest.mark.slow
def test_the_texts_of_this_python():
    texts = text.read_texts()
    assert {name: len(part) > 50_000 for name, part in texts.items()} == dict.fromkeys(("train", "dev", "test"), True)
    paragraphs = {name: {p for p in part.split("\n\n") if len(p) > 200} for name, part in texts.items()}
    assert not paragraphs["dev"] & paragraphs["test"]
    shared = len((paragraphs["dev"] | paragraphs["test"]) & paragraphs["train"])
    assert shared < 0.01 * len(paragraphs["train"]), "C modules repeat docstrings of their Python twins"
