"""Import paths from before the modules had folders: still right, with one warning, and used nowhere here."""

import importlib
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

import lightning_novograd
from lightning_novograd._moved import MOVED

PACKAGE = "lightning_novograd"
NEEDS = {"optim.cuda_kernels": "triton", "optim.fused_cuda": "triton"}

# What a module offered under its old name, and a folder of the same name offers now
NAMES = {
    "batch_plan": "BatchPlan solve_batch_plan scale_lr",
    "callbacks": "LayerMonitor draw_layers",
    "closed_form_lr": "ClosedFormLR Phase ScheduleError",
    "config": "parse_optim",
    "construct": "SchedulerSpec",
    "convert_checkpoint": "convert_file",
    "describe": "overview details markdown",
    "exponential_schedule": "WarmupHoldAnnealExponential",
    "factory": "build_optimizers",
    "hparams": "store_plain arguments_of_init",
    "integrations.lightning_cli": "OptimCLI",
    "lr_scheduler": "CosineAnnealing NoamHoldAnnealing T5InverseSquareRootAnnealing WarmupPolicy PolyDecay",
    "module": "OptimMixin attach_optimizers check_same_lightning",
    "openseq2seq_schedules": "PiecewiseConstant ExpDecay PolyDecay CosineDecay TransformerPolicy InvPolyDecay",
    "optim": "NovoGrad novograd",
    "optim.checkpoint": "FORMATS convert_checkpoint convert_state_dict detect_format in_our_format",
    "optim.cpu_kernel": "build load library_path",
    "optim.fused_cpu": "kernel_step",
    "optim.larc": "LARC",
    "optim.layer_norms": "squared_norms",
    "optim.larc_maths": "gradient_factors update_factors",
    "optim.larc_options": "larc_arguments_from_openseq2seq",
    "optim.novograd": "NovoGrad novograd",
    "optim_block": "OptimConfig LarcConfig SchedConfig",
    "phased_lr": "PhasedLR",
    "plain": "to_plain load_yaml select",
    "plotting": "lr_curves plot_schedule",
    "recipes.asr.audio": "load_audio read_header change_speed",
    "recipes.asr.blocks": "BlockConfig JasperBlock MaskedConv1d",
    "recipes.asr.callbacks": "UtteranceRate BatchSeed CurveRecorder",
    "recipes.asr.corpora": "Manifests available_corpora get_corpus prepare_corpus",
    "recipes.asr.corpora.espeak_digits": "EspeakDigits",
    "recipes.asr.corpora.fsdd": "Fsdd",
    "recipes.asr.ctc_module": "CTCModule ctc_loss",
    "recipes.asr.dataset": "SpeechDataset Batch collate",
    "recipes.asr.decode": "greedy",
    "recipes.asr.features": "MelConfig MelSpectrogram mel_filters",
    "recipes.asr.loader": "ResumableLoader",
    "recipes.asr.manifest": "Utterance read_manifest",
    "recipes.asr.metrics": "ErrorRate",
    "recipes.asr.nemo_checkpoint": "NemoArchive load_nemo",
    "recipes.asr.run": "run",
    "recipes.asr.sampler": "GlobalBatchSampler EvalBatchSampler",
    "recipes.asr.settings": "RunSettings plan_batches",
    "recipes.asr.spec_augment": "SpecAugment SpecAugmentConfig",
    "recipes.asr.trained": "TrainedRun load_model",
    "resume": "ResumeCheck",
    "run_length": "run_length",
}


@pytest.fixture(autouse=True)
def not_imported_before(monkeypatch):
    for name in [*MOVED, "recipes.asr.corpora.fsdd"]:
        monkeypatch.delitem(sys.modules, f"{PACKAGE}.{name}", raising=False)


def import_silently(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(f"{PACKAGE}.{name}".rstrip("."))


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    if old in NEEDS:
        pytest.importorskip(NEEDS[old])
    import_silently(old.rpartition(".")[0])
    new = f"{PACKAGE}.{MOVED[old]}"
    with pytest.warns(DeprecationWarning, match=f"^{PACKAGE}.{old} is {new} now") as caught:
        module = importlib.import_module(f"{PACKAGE}.{old}")
    assert len(caught) == 1
    assert module is importlib.import_module(new)
    assert (module.__name__, module.__spec__.name) == (new, new)


@pytest.mark.parametrize("old", NAMES)
def test_what_it_offered_is_there(old):
    module = import_silently(old)
    names = NAMES[old].split()
    assert names
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_warning_comes_once_and_points_at_the_import():
    code = compile(f"from {PACKAGE}.plotting import plot_schedule\n" * 2, "theirs.py", "exec")
    with pytest.warns(DeprecationWarning, match="plotting is") as caught:
        exec(code, {})
    assert [(w.filename, w.lineno) for w in caught] == [("theirs.py", 1)]


def test_modules_of_a_moved_package_moved_with_it():
    import_silently("recipes.asr.corpora")
    with pytest.warns(DeprecationWarning, match=r"asr\.corpora\.fsdd is .*\.asr\.data\.corpora\.fsdd now"):
        module = importlib.import_module(f"{PACKAGE}.recipes.asr.corpora.fsdd")
    assert module is importlib.import_module(f"{PACKAGE}.recipes.asr.data.corpora.fsdd")


@pytest.mark.parametrize("name", ["plottings", "plotting.deeper", "optim.cpu_kernels", "recipes.asr.corpora.mine"])
def test_other_names_stay_unknown(name):
    with pytest.raises(ModuleNotFoundError, match=name):
        import_silently(name)


def test_objects_pickled_under_an_old_path_load():
    from lightning_novograd.large_batch import BatchPlan, solve_batch_plan

    plan = solve_batch_plan(64, per_device_batch_size=8, devices=2)
    old = pickle.dumps(plan, 0).replace(b"lightning_novograd.large_batch.plan", b"lightning_novograd.batch_plan")
    assert b"batch_plan" in old
    with pytest.warns(DeprecationWarning, match=r"large_batch\.plan now"):
        loaded = pickle.loads(old)
    assert type(loaded) is BatchPlan
    assert loaded == plan


def test_a_command_runs_under_its_old_path(tmp_path):
    """`python -m`, which runs a module's code and does not import it."""
    run = subprocess.run(
        [sys.executable, "-W", "default", "-m", f"{PACKAGE}.optim.cpu_kernel"],
        env={"PATH": str(tmp_path), "CXX": "no-such-compiler", "NOVOGRAD_KERNEL_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "optim.cpu_kernel is lightning_novograd.optim.kernels.cpu.build now" in run.stderr
    assert "no-such-compiler" in run.stderr


def test_installing_twice_leaves_one_finder():
    importlib.reload(lightning_novograd)
    assert len([finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "MovedFinder"]) == 1


def test_nothing_here_uses_an_old_path():
    folders = ("lightning_novograd", "recipes", "conf", "hydra_plugins", "tests", "benchmarks/", "docs")
    files = [
        path for folder in folders for suffix in ("py", "md", "yaml") for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "Makefile")]
    exempt = {Path(__file__), ROOT / "lightning_novograd" / "_moved.py", *(ROOT / "benchmarks" / "results").iterdir()}
    names = [(package, name) for package, _, name in (f"{PACKAGE}.{old}".rpartition(".") for old in MOVED)]
    pattern = re.compile(
        "|".join(rf"{package}\.{name}\b|from {package} import .*\b{name}\b" for package, name in names)
    )
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files if path not in exempt}
    assert len(texts) > 250
    assert {path: found for path, text in texts.items() if (found := pattern.findall(text))} == {}
