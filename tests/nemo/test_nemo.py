"""Against a real nemo_toolkit, which pins older Lightning and Hydra versions and so has an environment of its own:
`make test-nemo`. Elsewhere these tests are skipped."""

import copy
import json

import pytest
import torch

pytest.importorskip("nemo.core", reason="needs nemo_toolkit: make test-nemo")

import lightning.pytorch as pl
import numpy as np
import soundfile
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.config.optimizers import AVAILABLE_OPTIMIZER_PARAMS
from nemo.core.config.schedulers import AVAILABLE_SCHEDULER_PARAMS
from nemo.core.optim import lr_scheduler as nemo_schedulers
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
from nemo.core.optim.novograd import Novograd
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS
from omegaconf import OmegaConf

from lightning_novograd import lr_scheduler
from lightning_novograd.errors import ConfigError
from lightning_novograd.integrations import nemo
from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.optim.novograd.optimizer import NovoGrad

LABELS = [" ", "a", "b", "c"]
STEPS = 8
NOVOGRAD = {"lr": 0.05, "betas": [0.95, 0.25], "weight_decay": 0.001}
COSINE = {"warmup_steps": 2, "min_lr": 0.001}


@pytest.fixture(autouse=True)
def nemo_tables():
    """NeMo's registries are module globals: every test leaves them as they were."""
    tables = (AVAILABLE_OPTIMIZERS, AVAILABLE_OPTIMIZER_PARAMS, AVAILABLE_SCHEDULERS, AVAILABLE_SCHEDULER_PARAMS)
    before = [dict(table) for table in tables]
    yield
    for table, contents in zip(tables, before, strict=True):
        table.clear()
        table.update(contents)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    noise = np.random.default_rng(0)
    lines = []
    for index in range(16):
        path = folder / f"{index}.wav"
        soundfile.write(path, noise.normal(0, 0.1, 8000).astype("float32"), 16000)
        lines.append(json.dumps({"audio_filepath": str(path), "duration": 0.5, "text": "ab c"}))
    path = folder / "manifest.json"
    path.write_text("\n".join(lines))
    return path


class Recorder(pl.Callback):
    """Learning rates that the optimizer steps saw, and the largest relative change of any layer in a step."""

    def __init__(self):
        self.lrs, self.largest_change = [], 0.0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lrs.append([group["lr"] for group in optimizer.param_groups])
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *args):
        for old, new in zip(self.before, pl_module.parameters(), strict=True):
            if old.norm() > 0:
                self.largest_change = max(self.largest_change, ((new - old).norm() / old.norm()).item())


def fit(manifest, optim):
    """A tiny QuartzNet, trained `STEPS` steps on noise with the optim block: model, recorder."""
    block = {"kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.0, "separable": True, "repeat": 1}
    cfg = {
        "sample_rate": 16000,
        "labels": LABELS,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            **{"features": 8, "sample_rate": 16000, "dither": 0.0, "pad_to": 0},
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            **{"feat_in": 8, "activation": "relu", "conv_mask": True},
            "jasper": [{**block, "filters": 12, "residual": False}, {**block, "filters": 12, "residual": True}],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            **{"feat_in": 12, "num_classes": len(LABELS), "vocabulary": LABELS},
        },
        "train_ds": {
            "manifest_filepath": str(manifest),
            **{"sample_rate": 16000, "labels": LABELS, "batch_size": 4, "shuffle": False, "num_workers": 0},
        },
        "optim": optim,
    }
    pl.seed_everything(1, verbose=False)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    model = EncDecCTCModel(OmegaConf.create(cfg), trainer=trainer)
    trainer.fit(model)
    assert trainer.global_step == STEPS
    return model, recorder


def test_names_are_added_next_to_those_of_nemo():
    before = dict(AVAILABLE_OPTIMIZERS), dict(AVAILABLE_SCHEDULERS)
    names = nemo.register()
    assert nemo.register() == names
    assert {"lightning_novograd", "lightning_sgd", "lightning_CosineAnnealing"} <= set(names)
    assert all(name.startswith("lightning_") for name in names)
    assert AVAILABLE_OPTIMIZERS["novograd"] is Novograd
    assert before[0].items() <= AVAILABLE_OPTIMIZERS.items()
    assert before[1].items() <= AVAILABLE_SCHEDULERS.items()


def test_every_schedule_of_nemo_has_a_counterpart():
    theirs = {name for name, cls in AVAILABLE_SCHEDULERS.items() if cls.__module__ == nemo_schedulers.__name__}
    assert {f"lightning_{name}" for name in theirs} <= set(nemo.register())
    assert len(theirs) == 14


def test_trains_as_with_nemos_own_novograd_and_cosine(manifest):
    theirs, their_run = fit(manifest, {"name": "novograd", **NOVOGRAD, "sched": {"name": "CosineAnnealing", **COSINE}})
    nemo.register()
    ours, our_run = fit(
        manifest,
        {"name": "lightning_novograd", **NOVOGRAD, "sched": {"name": "lightning_CosineAnnealing", **COSINE}},
    )
    assert type(theirs._optimizer) is Novograd
    assert type(ours._optimizer) is NovoGrad
    assert type(ours._scheduler["scheduler"]) is lr_scheduler.CosineAnnealing
    assert our_run.lrs == their_run.lrs
    assert len({lr for [lr] in our_run.lrs}) == STEPS
    for (name, our), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_larc_bounds_every_step_of_a_nemo_model(manifest):
    nemo.register()
    larc = {"trust_coefficient": 0.003}
    bounded, bounded_run = fit(manifest, {"name": "lightning_novograd", **NOVOGRAD, "larc": larc})
    _, free_run = fit(manifest, {"name": "lightning_novograd", **NOVOGRAD})
    assert type(bounded._optimizer) is LARC
    assert bounded_run.largest_change <= 0.003 * (1 + 1e-4)
    assert free_run.largest_change > 0.003


def test_sgd_with_larc_by_name(manifest):
    nemo.register()
    larc = {"trust_coefficient": 0.02, "target": "gradient"}
    model, _ = fit(manifest, {"name": "lightning_sgd", "lr": 0.1, "momentum": 0.9, "larc": larc})
    assert type(model._optimizer) is LARC
    assert model._optimizer.param_groups[0]["momentum"] == 0.9
    assert all(p.isfinite().all() for p in model.parameters())


def test_optimizer_arguments_in_nemos_nested_form(manifest):
    nemo.register()
    params = {key: value for key, value in NOVOGRAD.items() if key != "lr"}
    nested = {"name": "lightning_novograd", "lr": NOVOGRAD["lr"], "args": {"name": "auto", "params": params}}
    model, _ = fit(manifest, nested)
    flat, _ = fit(manifest, {"name": "lightning_novograd", **NOVOGRAD})
    for a, b in zip(model.parameters(), flat.parameters(), strict=True):
        assert torch.equal(a, b)
    assert type(model._optimizer.param_groups[0]["betas"]) is tuple


def test_nemo_drops_schedule_arguments_in_its_nested_form():
    """NeMo 3.0.0 does so with its own schedules too; the migration guide says to write them flat."""
    nemo.register()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    args = {"name": "auto", "params": COSINE}
    theirs, ours = (
        nemo_schedulers.prepare_lr_scheduler(optimizer, {"name": name, "max_steps": STEPS, "args": args})["scheduler"]
        for name in ("CosineAnnealing", "lightning_CosineAnnealing")
    )
    assert (theirs.warmup_steps, theirs.min_lr) == (0, 0.0)
    assert (ours.arguments["warmup_steps"], ours.arguments["min_lr"]) == (0, 0.0)


def test_replace_serves_nemos_own_names(manifest, tmp_path):
    names = nemo.register(replace=True)
    assert {"novograd", "CosineAnnealing", "lightning_novograd"} <= set(names)
    assert "adamw" not in names
    model, _ = fit(manifest, {"name": "novograd", **NOVOGRAD, "sched": {"name": "CosineAnnealing", **COSINE}})
    assert type(model._optimizer) is NovoGrad
    assert type(model._scheduler["scheduler"]) is lr_scheduler.CosineAnnealing
    state = {"optimizer": model._optimizer.state_dict(), "scheduler": model._scheduler["scheduler"].state_dict()}
    torch.save(state, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_continues_from_nemos_optimizer_state():
    def steps(model, optimizer, count, seed):
        data = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(4, 6, generator=data)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    their_optimizer = Novograd(theirs.parameters(), **NOVOGRAD)
    steps(theirs, their_optimizer, 5, seed=1)
    ours = copy.deepcopy(theirs)
    our_optimizer = NovoGrad(ours.parameters(), lr=1.0)
    our_optimizer.load_state_dict(copy.deepcopy(their_optimizer.state_dict()))
    for model, optimizer in ((theirs, their_optimizer), (ours, our_optimizer)):
        steps(model, optimizer, 5, seed=2)
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        pytest.param({"betass": [0.9, 0.5]}, r"optim\.betass: unknown key.*'betas'", id="misspelt key"),
        pytest.param({"no_decay": ["bias"]}, r"optim\.no_decay: .*optim_param_groups", id="groups are NeMo's"),
        pytest.param({"layer_decay": 0.9}, r"optim\.layer_decay: .*optim_param_groups", id="layers are NeMo's"),
        pytest.param({"module": "encoder"}, r"optim\.module: .*whole model", id="the model is NeMo's"),
        pytest.param({"grad_clip_norm": 1.0}, r"optim\.grad_clip_norm: .*gradient_clip_val", id="clipping is NeMo's"),
        pytest.param({"ema": 0.9}, r"optim\.ema: .*exp_manager", id="averages are NeMo's"),
    ],
)
def test_a_block_that_cannot_work_is_refused(manifest, extra, message):
    nemo.register()
    with pytest.raises(ConfigError, match=message):
        fit(manifest, {"name": "lightning_novograd", "lr": 0.05, **extra})
