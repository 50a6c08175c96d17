"""`OptimTrainerMixin`: what the Trainer's arguments and the block say together, and schedules that it steps."""

import warnings

import pytest
import torch
from torch import nn

from lightning_novograd.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hosts")
from lightning_novograd.integrations.huggingface import OptimTrainerMixin  # noqa: E402

DATA = [{"x": torch.ones(3) * index, "y": index % 2} for index in range(8)]
SGD = {"name": "sgd", "lr": 0.1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x, y):
        return {"loss": nn.functional.cross_entropy(self.head(self.body(x)), y)}


class BlockTrainer(OptimTrainerMixin, transformers.Trainer):
    pass


def trainer(tmp_path, optim, extra=None, **arguments):
    settings = {
        "max_grad_norm": 0,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    args = transformers.TrainingArguments(str(tmp_path), **{**settings, **arguments})
    data = {"train_dataset": DATA, "eval_dataset": DATA}
    return BlockTrainer(Net(), args, optim=optim, **data, **(extra or {}))


def test_a_block_that_does_not_parse_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.momentun: .*momentum"):
        trainer(tmp_path, {**SGD, "momentun": 0.9})


def test_an_average_of_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.ema: this Trainer does not average weights"):
        trainer(tmp_path, {**SGD, "ema": 0.999})


def test_a_pace_of_manual_optimization_is_refused(tmp_path):
    sched = {"name": "cosine", "steps_per_batch": 2}
    for block, where in (
        ({"sched": sched}, "sched"),
        ({"param_groups": [{"match": "*", "sched": sched}]}, "param_groups"),
    ):
        with pytest.raises(ConfigError, match=rf"optim\.{where}.*steps_per_batch: 2, but this Trainer steps"):
            trainer(tmp_path, {**SGD, **block})


def test_without_sched_the_lr_is_constant(tmp_path):
    run = trainer(tmp_path, SGD)
    run.train()
    assert run.lr_scheduler.get_last_lr() == [0.1]
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.1]


def test_a_second_fit_has_a_schedule_of_its_own(tmp_path):
    run = trainer(tmp_path, {**SGD, "sched": {"name": "WarmupAnnealing"}})
    for _ in range(2):
        run.train()
        assert run.lr_scheduler.last_epoch == run.lr_scheduler.arguments["max_steps"] == 8


def test_a_second_fit_with_a_cycle_has_the_same_one(tmp_path):
    """OneCycleLR leaves an `initial_lr` of its own in the param groups."""
    cycle = {"name": "OneCycleLR", "max_lr": 0.2, "cycle_momentum": False}
    peaks = []

    class Lrs(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            peaks[-1] = max(peaks[-1], kwargs["optimizer"].param_groups[0]["lr"])

    run = trainer(tmp_path, {**SGD, "sched": cycle}, {"callbacks": [Lrs()]})
    for _ in range(2):
        peaks.append(0.0)
        run.train()
    assert peaks == pytest.approx([0.2, 0.2], rel=5e-2)


def test_rules_with_schedules_and_optimizers_of_their_own(tmp_path):
    rule = {"match": "head.*", "optimizer": "adamw", "sched": {"name": "StepLR", "interval": "step", "step_size": 4}}
    run = trainer(tmp_path, {**SGD, "sched": {"name": "WarmupAnnealing"}, "param_groups": [rule]})
    run.train()
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.0, 1e-5])


@pytest.mark.parametrize(
    ("sched", "key"),
    [
        ({"name": "StepLR", "step_size": 1}, "interval"),
        ({"name": "StepLR", "step_size": 1, "interval": "step", "frequency": 2}, "frequency"),
        ({"name": "cosine", "interval": "epoch"}, "interval"),
    ],
)
def test_schedules_that_the_trainer_does_not_step_so(tmp_path, sched, key):
    with pytest.raises(ConfigError, match=rf"optim\.sched\.{key}: .*steps schedules with the optimizer: say {key}: "):
        trainer(tmp_path, {**SGD, "sched": sched})
    with pytest.raises(ConfigError, match=rf"optim\.param_groups\[0\]\.sched\.{key}"):
        trainer(tmp_path, {**SGD, "param_groups": [{"match": "head.*", "sched": sched}]})


STEP_LR = {"name": "StepLR", "interval": "step", "step_size": 100}


@pytest.mark.parametrize(
    ("sched", "lrs"),
    [
        ({"name": "polynomial", "power": 1.0, "max_epochs": 1}, [0.1, 0.075, 0.05, 0.025, 0.0, 0.0, 0.0, 0.0]),
        ({**STEP_LR, "warmup_epochs": 1}, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1]),
    ],
)
@pytest.mark.parametrize("arguments", [{"num_train_epochs": 2}, {"num_train_epochs": 1.9}, {"max_steps": 8}])
def test_epochs_are_the_trainers(tmp_path, sched, lrs, arguments):
    for block in ({"sched": sched}, {"param_groups": [{"match": "*", "sched": sched}]}):
        run = trainer(tmp_path, {**SGD, **block}, logging_steps=1, **arguments)
        run.train()
        seen = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
        assert seen == pytest.approx(lrs[: len(seen)])
        assert len(seen) >= 7


def test_epochs_of_data_without_a_length_are_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(DATA)

    run = trainer(tmp_path, {**SGD, "sched": {**STEP_LR, "warmup_epochs": 1}}, max_steps=8)
    run.train_dataset = Stream()
    with pytest.raises(ConfigError, match=r"optim\.sched\.warmup_epochs: .*an iterable dataset"):
        run.train()


PLATEAU = {**SGD, "sched": {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "threshold": 10.0}}


def test_reduce_on_plateau_is_stepped_by_evaluations(tmp_path):
    labels = {"num_train_epochs": 3, "label_names": ["y"]}
    run = trainer(tmp_path, PLATEAU, eval_strategy="epoch", metric_for_best_model="loss", **labels)
    run.train()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)


def test_reduce_on_plateau_in_a_rule_too(tmp_path):
    labels = {"num_train_epochs": 3, "label_names": ["y"]}
    block = {**SGD, "param_groups": [{"match": "head.*", "sched": PLATEAU["sched"]}]}
    run = trainer(tmp_path, block, eval_strategy="epoch", metric_for_best_model="loss", **labels)
    run.train()
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.1, 0.0001])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric_for_best_model": "loss"}, r"optim\.sched\.name: .*set eval_strategy"),
        ({"eval_strategy": "epoch"}, r"optim\.sched\.monitor: 'eval_loss', but .*metric_for_best_model=None"),
        ({"eval_strategy": "epoch", "metric_for_best_model": "wer"}, r"optim\.sched\.monitor: .*'wer'"),
    ],
)
def test_a_plateau_that_nobody_would_see(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, PLATEAU, **arguments)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({**SGD, "grad_clip_norm": 0.5}, "grad_clip_norm"),
        ({**SGD, "grad_clip_value": 0.5}, "grad_clip_value"),
        ({**SGD, "larc": True}, "larc"),
    ],
)
def test_two_bounds_are_refused(tmp_path, block, key):
    with pytest.raises(ConfigError, match=rf"optim\.{key}: .*max_grad_norm=1\.0"):
        trainer(tmp_path, block, max_grad_norm=1.0)
    trainer(tmp_path, block)


@pytest.mark.parametrize("block", [{**SGD, "grad_clip_norm": 1.0}, {**SGD, "larc": {"allow_grad_clip": True}}, SGD])
def test_one_bound_is_the_trainers(tmp_path, block):
    trainer(tmp_path, block, max_grad_norm=1.0)


@pytest.mark.parametrize(("key", "bound"), [("grad_clip_norm", 1e-3), ("grad_clip_value", 1e-4)])
def test_the_blocks_bound_holds(tmp_path, key, bound):
    run = trainer(tmp_path, {"name": "sgd", "lr": 1.0, key: bound}, max_steps=1)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train()
    moves = torch.cat([(p.detach() - old).flatten() for p, old in zip(run.model.parameters(), before, strict=True)])
    moved = moves.norm() if key == "grad_clip_norm" else moves.abs().max()
    assert 0.9 * bound < moved < 1.01 * bound


def test_arguments_without_effect_are_named(tmp_path):
    with pytest.warns(UserWarning, match=r"no effect with learning_rate=0\.3, warmup_steps=5$"):
        trainer(tmp_path, SGD, learning_rate=0.3, warmup_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path, SGD)


def test_two_optimizers_are_refused(tmp_path):
    other = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(TypeError, match="optimizers and optim both say"):
        trainer(tmp_path, SGD, {"optimizers": (other, None)})


def test_model_init(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), max_grad_norm=0, use_cpu=True, report_to=[], max_steps=3)
    run = BlockTrainer(
        model_init=Net, args=args, train_dataset=DATA, optim={**SGD, "sched": {"name": "WarmupAnnealing"}}
    )
    run.train()
    assert run.lr_scheduler.get_last_lr() == [0.0]
