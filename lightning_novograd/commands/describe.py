"""What the optim block takes, as text for a terminal and as docs/optim_block.md."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from lightning_novograd.config.arguments import Argument, entry_arguments, expected
from lightning_novograd.config.schema import (
    EMA_KEYS,
    LARC_ARGUMENTS,
    LARC_KEYS,
    LARGE_BATCH_KEYS,
    LAYER_DECAY_KEYS,
    OPTIM_KEYS,
    RULE_KEYS,
    SCHED_KEYS,
    WARMUP_KEYS,
)
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cpu import library
from lightning_novograd.registry import (
    Entry,
    Kind,
    available_optimizers,
    available_schedulers,
    get_optimizer,
    get_scheduler,
)

_INTRO = """\
# The optim block

<!-- Made by `python -m lightning_novograd describe --markdown`; edit docstrings and describe.py. -->

```yaml
optim:
  name: novograd                  # any registered optimizer
  lr: 0.05                        # and its other arguments
  betas: [0.95, 0.25]
  weight_decay: 0.001
  no_decay: [bias, norm]
  param_groups:
    - {match: "decoder.*", lr: 0.01}
  larc: {trust_coefficient: 0.001}
  sched:
    name: CosineAnnealing         # any registered scheduler, and its arguments
    warmup_ratio: 0.05
    min_lr: 0.0
```

- The block works in any training loop: [plain torch, Fabric, Hugging Face's Trainer, Accelerate](hosts.md).
- Names are looked up in the registry only, without regard to case. A `_target_` is compared with the paths of the
  registered classes (`torch.optim.AdamW`), nothing is imported; others, Python objects and YAML tags are refused.
- An unknown key, a wrong type, a value out of range: one `ConfigError` with the key's full path and the nearest match.
- Numbers are in range in float32 too: 1e39 is infinite there, and 0.99999999 is 1. Where the weights are float16
  (`precision: 16-true`), torch's Adam and its kin need an `eps` that float16 holds (1.0e-4).
- What would have no effect is refused, such as `luc_trust` without `luc` or `dampening` without `momentum`; so is what
  is bound to fail in the first step, such as `differentiable: true`, or SparseAdam for anything but sparse embeddings.
- Everything becomes plain Python before it reaches an optimizer: checkpoints load with `weights_only=True`.
- `python -m lightning_novograd describe optimizer NAME` (or `scheduler NAME`) lists the arguments of any of them.
"""

_GROUPS = """\
The first rule that matches a parameter takes it; a rule sets any argument that the optimizer has per group. Shorthands:
`bias` (parameters called `bias`, `bias_*` or `*_bias`), `norm` (those of normalization layers), `depthwise` (those of
convolutions with one channel in each group), `1d` or `ndim<=1` (at most one dimension). A glob matches full parameter
names, dots included, without what torch.compile puts into them; its brackets are a choice of characters, so the name
`x[0]` is `x[[]0]`. With both `match` and `module_type`, both must hold.

- A rule, or a glob in a rule or in `no_decay`, that matches nothing is an error; so is a rule whose parameters
  earlier rules have all taken. No two groups have the same name, whether it is given or made of the patterns.
- `no_decay` takes the same shorthands and globs. It sets `weight_decay: 0` unless the parameter's rule itself has
  `weight_decay`; that of a rule's optimizer is like the block's, and `no_decay` goes before it, and before `wd_mult`.
- Frozen parameters (`requires_grad=False`) are left out; the log says how many. A param group that a fine-tuning
  callback adds later gets the options of the rule that all its parameters fall under; a warning says if they fall under
  several (`OptimMixin.thawed_groups` makes a group for each).
- Groups are in this order: what no rule matches, then each rule's; each from the output to the input with
  `layer_decay`, and before its part without decay. A scheduler's list (`max_lr: [0.1, 0.2]`) has one value for each
  group that the model has. With more than one, the log has a table of them, and so has
  `python -m lightning_novograd describe --model module:Class conf.yaml`.
- A shared parameter is optimized once; if its names fall under different rules, that is an error.

A rule may have an optimizer of its own, with that class's arguments and defaults, and LARC around it alone:

```yaml
optim:
  name: novograd                  # what no rule takes
  lr: 0.05
  param_groups:
    - {match: "encoder.*.weight", optimizer: {name: muon, lr: 0.02}}
    - {match: "embed.*", optimizer: adamw, lr_mult: 0.5}
  layer_decay: 0.9
  sched: {name: CosineAnnealing}  # for all, each from its own LR; or `sched` in a rule
```

To the outside it is one optimizer, a `Composite`. `lr_mult` and `wd_mult` multiply what that optimizer has.
`layer_decay: 0.9` gives the layer next to the output the whole LR and each one below it 0.9 of that; a rule's own `lr`
stays as it is. What has a factor has the schedule of the others times it at every step: where the block's LR ends at
`min_lr: 1.0e-6`, a layer with 0.9 of it ends at 9.0e-7. torch's schedulers with one `eta_min` for all are refused if
that is above a group's LR. `layers` says how layers are found:

- `auto`, by the order in which modules were registered. The elements of the outermost `Sequential` or `ModuleList`
  are layers; where any of these have submodules (the blocks of a Transformer or ResNet), those alone are. All that
  comes before the first one is one layer (embeddings, a stem), so is all that comes after the last (norm, head), and
  what stands between two. Parameters that a module around the blocks has itself come before its blocks if a word in
  their name begins with `token`, `embed` or `pos` (`cls_token`, `pos_embed`), else after them (`logit_scale`). In a
  model without lists every module that owns parameters is a layer. BEiT counts in this way, too (timm has the last
  norm with the last block). Where the order of registration is not that of the forward pass, use one of the other two.
- A list of globs from input to output; what none matches is with the output.
- The name of a public method that the model's own class defines, which takes a parameter's name and returns the
  layer's index, 0 at the input.
"""

_SEVERAL = """\
## Several optimizers

For manual optimization, blocks by name; each optimizes the submodule of its name, or of its key `module`:

```yaml
optim:
  generator: {name: adam, lr: 2.0e-4, sched: {name: CosineAnnealing}}
  discriminator: {name: adam, lr: 1.0e-4, sched: {name: CosineAnnealing, steps_per_batch: 2}}
```

`self.optimizers()` and `self.lr_schedulers()` return them in this order. Names of parameters in rules begin below the
submodule. A schedule is as long as its own optimizer's steps: `steps_per_batch` of each batch (2, or 0.25 for every
fourth batch), 1 if it does not say. If a schedule is not stepped as often, one warning says so at an epoch's end.
"""

_EMA = """\
## Averaged weights

`ema: 0.999`, or a mapping, averages the weights exponentially through Lightning's callback `EMAWeightAveraging`:
`average = decay * average + (1 - decay) * weights` after each optimizer step, from the weights of the first update on.
A step that was left out, by a GradScaler or by the module's `optimizer_step`, is not averaged.
Validation, the trained model and the checkpoints' `state_dict`, those with `save_weights_only` too, have the average;
training goes on with the weights, which a checkpoint has as `current_model_state`, and is resumed exactly, also from
a checkpoint that was saved during validation or after the run. Without `ema`, such a checkpoint is resumed with its
weights, not their average. For one optimizer that Lightning steps, with weights of float32 or float64, not sharded;
everything else is refused, and so is a callback of the Trainer's that averages too. `build_optimizers` refuses it.

Optimizers that average weights themselves and must be told of evaluation (methods `eval` and `train`, as
Schedule-Free's) are told: `train` when training begins, `eval` around validation and when it ends; checkpoints have
what they evaluate. `ema` is refused with them. BatchNorm's statistics are those of the weights that train.
"""

_LARGE_BATCH = """\
## The global batch

`large_batch: {global_batch_size: 8192, per_device_batch_size: 64}` has Lightning's automatic optimization accumulate as
many batches as a step of 8192 samples needs on the Trainer's devices, or is refused if that cannot be exact. With
pairs, `global_batch_size: [[0, 256], [2000, 1024]]`, the global batch grows at these optimizer steps
([batch_ramp.md](batch_ramp.md)). It is refused where the Trainer's `accumulate_grad_batches` says something too.
"""

_SCHED = """\
The schedule is as long as the run, unless `max_steps` or `max_epochs` says otherwise: the Trainer's `max_steps`, or
epochs x batches / accumulation, whichever is less. The log shows the length and where it came from; a warmup that does
not fit is an error that shows both, and so is a length that cannot be known (an iterable dataset without `max_steps`).

- Our schedulers, `OneCycleLR` and `CyclicLR` are stepped with the optimizer, torch's others once per epoch; `interval`
  changes that. NeMo steps `StepLR` with the optimizer: say `interval: step` there. Without an `interval` a line in the
  log warns of it.
- `OneCycleLR.total_steps` and `CosineAnnealingLR.T_max` are filled in like `max_steps`.
- `warmup_steps`, `warmup_ratio` (of the schedule) or `warmup_epochs` put a linear warmup before any scheduler that
  has none of its own: `{name: StepLR, interval: step, step_size: 3000, warmup_steps: 500}`. The LR rises as in NeMo's
  policies, `lr * (s+1) / (W+1)`; then the scheduler begins, with what is left of the run. One that is stepped once
  per epoch takes `warmup_epochs` or `warmup_ratio`; one that does not begin at the block's `lr` (`LinearLR`,
  `OneCycleLR`) none.
- `SequentialLR` and `ChainedScheduler` take a list of blocks like this one as `schedulers`. They are stepped as often
  as their members; where these differ, `interval` must be given. Lengths that members leave out are filled in: from
  milestone to milestone, for the last one what is left of the run. Our policies and other schedulers with the LR of a
  step (`OneCycleLR`, `CyclicLR`) do not multiply in a `ChainedScheduler`; ours are refused there.
- `max_lr` of `OneCycleLR`, `base_lr` and `max_lr` of `CyclicLR`: a number is for the block's `lr`, and a param group
  with another `lr` gets it in proportion. A list has one value for each group.
- `OneCycleLR` and `CyclicLR` leave `momentum` and `betas` alone where the block or a rule sets them, unless
  `cycle_momentum`, `base_momentum` or `max_momentum` is given too. Where the block sets neither, they cycle, as in
  torch.
- A step that a GradScaler skipped (fp16) does not advance the schedule.
"""

_NEMO = """\
## NeMo's grammar

NeMo's blocks parse as they are: lower-case names, `sched` inline, `args: {name: auto, params: {...}}` in `optim` and in
`sched`, `t_max_epochs`, `max_steps: -1` (from the trainer), `last_epoch: -1`, and `iters_per_batch`,
`t_accumulate_grad_batches`, `t_limit_train_batches`, `t_num_workers` as null (the trainer knows them; a number in
`iters_per_batch` has no effect beside `args`, as in NeMo). `fused_adam` is torch's AdamW with `fused: true` and apex's
defaults (`weight_decay: 0`; `adam_w_mode: false` makes it Adam), unless a class of that name is registered.
`lr_decay` of `ExponentialLR` is `gamma`. OpenSeq2Seq's `larc_eta`, `larc_mode` and `epsilon` are taken in `larc`.
"""

# Arguments that the policies share and explain together at PhasedLR
_SHARED_HELP = {
    "max_steps": "optimizer steps of the schedule; afterwards the LR is min_lr",
    "warmup_steps": "linear warmup to the base LR",
    "warmup_ratio": "the same as a share of max_steps, 0..1",
    "hold_steps": "steps at the base LR after warmup",
    "hold_ratio": "the same as a share of max_steps, 0..1",
    "constant_steps": "steps at the end of the schedule",
    "constant_ratio": "the same as a share of max_steps, 0..1",
    "min_lr": "LR at the end, absolute",
}


def overview(kind: Kind | None = None) -> str:
    """Every registered name with its one line; of one kind only, if that is given."""
    optimizers = ["Optimizers (optim.name)", *_lines(available_optimizers(), get_optimizer)]
    schedulers = ["Schedulers (optim.sched.name)", *_lines(available_schedulers(), get_scheduler)]
    shown = {"optimizer": [*optimizers, "", _kernels()], "scheduler": schedulers}
    return "\n\n".join("\n".join(lines) for key, lines in shown.items() if kind in (key, None))


def entry_of(name: str) -> Entry:
    """The optimizer or the scheduler registered as `name`.

    Raises:
        ConfigError: neither is known by that name, or its plugin does not import.

    """
    problems = []
    for get in (get_optimizer, get_scheduler):
        try:
            return get(name, "")
        except ConfigError as error:
            problems.append(error)
    broken = next((error for error in problems if not error.problem.startswith("unknown ")), None)
    known = choices(name, [*available_optimizers(), *available_schedulers()])
    raise broken or ConfigError("", f"unknown optimizer or scheduler {name!r}{known}")


def details(entry: Entry) -> str:
    """One class: help, paper, arguments."""
    head = [entry.name, f"  {entry.help}"]
    if entry.aliases:
        head.append(f"  also called {', '.join(entry.aliases)}")
    if entry.paper:
        head.append(f"  {entry.paper}")
    rows = [(a.name, _type(a), _default(a), a.help) for a in _settable(entry)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    ]
    tail = ["", _kernels()] if entry.cls is NovoGrad else []
    return "\n".join([*head, "", *(f"  {line}" for line in lines), *tail])


def _kernels() -> str:
    return f"C++ kernels for the CPU (NovoGrad, LARC): {library.status()}"


def markdown() -> str:
    """docs/optim_block.md."""
    optimizers = _importable(available_optimizers(), get_optimizer)
    schedulers = _importable(available_schedulers(), get_scheduler)
    parts = [
        _INTRO,
        "## Keys\n\n`name`, the arguments of the named optimizer, and:\n",
        _table(OPTIM_KEYS.values()),
        "## Parameter groups\n",
        _GROUPS,
        _table([*RULE_KEYS.values()]),
        "`layer_decay` is a number or:\n",
        _table([*LAYER_DECAY_KEYS.values()]),
        _EMA,
        _table(EMA_KEYS.values()),
        _LARGE_BATCH,
        _table(LARGE_BATCH_KEYS.values()),
        _SEVERAL,
        "## LARC\n\nThe arguments of `LARC`, and `allow_grad_clip`; `true` stands for the defaults.\n",
        _table([*LARC_ARGUMENTS.values(), *LARC_KEYS.values()]),
        "## Schedules\n\n`name`, the arguments of the named scheduler, and:\n",
        _table([*SCHED_KEYS.values(), *WARMUP_KEYS.values()]),
        _SCHED,
        _NEMO,
        "## Optimizers\n",
        *(_section(entry) for entry in optimizers if _is_ours(entry)),
        _names("torch.optim", optimizers),
        "## Schedulers\n",
        *(_section(entry) for entry in schedulers if _is_ours(entry)),
        _names("torch.optim.lr_scheduler", schedulers),
    ]
    return "\n".join(parts)


def _importable(names: Iterable[str], get: Callable[[str], Entry]) -> list[Entry]:
    entries = []
    for name in names:
        with contextlib.suppress(ConfigError):  # a plugin's fault, which `describe` shows
            entries.append(get(name))
    return entries


def _section(entry: Entry) -> str:
    also = f" Also called {', '.join(f'`{alias}`' for alias in entry.aliases)}." if entry.aliases else ""
    paper = f" <{entry.paper}>" if entry.paper else ""
    return f"### {entry.name}\n\n{entry.help}.{also}{paper}\n\n{_table(_settable(entry))}"


def _names(title: str, entries: Iterable[Entry]) -> str:
    names = ", ".join(f"`{entry.name}`" for entry in entries if entry.cls.__module__.startswith("torch."))
    refused = "numbers that would make them fail or diverge in mid-run are refused"
    return f"### {title}\n\n{names}, with torch's own arguments and defaults; {refused}.\n"


def _is_ours(entry: Entry) -> bool:
    return entry.cls.__module__.startswith("lightning_novograd.")


def _settable(entry: Entry) -> list[Argument]:
    arguments = [argument for name, argument in entry_arguments(entry).items() if name != "last_epoch"]
    helps = _SHARED_HELP if _is_ours(entry) else {}
    arguments = [replace(a, help=a.help or helps.get(a.name, "")) for a in arguments]
    return [replace(a, default="the run's") if a.name == entry.length else a for a in arguments]


def _lines(names: Iterable[str], get: Callable[[str], Entry]) -> list[str]:
    rows = []
    for name in names:
        try:
            entry = get(name)
            rows.append((entry.name, entry.help))
        except ConfigError as error:  # a plugin's fault must not hide the others
            rows.append((name, error.problem))
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {help_}" for name, help_ in rows]


def _table(arguments: Iterable[Argument]) -> str:
    head = "| key | value | default | |\n|---|---|---|---|\n"
    rows = (f"| `{a.name}` | {_type(a)} | {_default(a)} | {a.help} |\n".replace("|  |", "| |") for a in arguments)
    return head + "".join(rows)


def _type(argument: Argument) -> str:
    return expected(argument.hint).removeprefix("a ").removeprefix("an ") or "a Python function: not from a config"


def _default(argument: Argument) -> str:
    words: Mapping[object, str] = {None: "null", True: "true", False: "false", "": ""}
    if argument.required:
        return "required"
    value = argument.default
    if isinstance(value, tuple):
        return str(list(value)).replace("None", "null")
    return words[value] if value is None or isinstance(value, bool) or value == "" else str(value)
