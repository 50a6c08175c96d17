"""Every `optim:` block of a NeMo checkout: which build, which are refused and why, whose LR curves are NeMo's.

    python tests/nemo_configs.py NEMO [--mutations 20000] [--seed 0]

Blocks are refused with a ConfigError or built; anything else fails. NeMo's own classes compute the curves where NeMo is
installed, else its formulas (nemo_schedules.py). A mutation changes one place of a block; what comes out must parse,
twice to the same, or raise a ConfigError that names a place in the block, each in less than a second.
"""

import argparse
import copy
import logging
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nemo_schedules import POLICIES
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_novograd import build_optimizers, parse_optim
from lightning_novograd.config import OptimConfig
from lightning_novograd.config.data import select
from lightning_novograd.errors import ConfigError

# Long enough for the longest warmup and the longest end of the configs
RUN = 100_000
TOLERANCE = 1e-9
SLOW = 1.0
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 10**6, 2**70, 0.0, 0.5, 1e-3, -0.1, 1e40, float("inf"), float("nan")),
    *("", "x", "auto", "adamw", "cosine", "step", "epoch", "1e-3", "???", "${lr}", "*", "torch.optim.SGD", "os.system"),
    *([], [0.9, 0.999], [1, 2, 3], ["bias"], {}, {"name": "sgd"}, {"x": 1}, {"_target_": "os.system"}, b"x", object()),
]
KEYS = ["name", "_target_", "args", "params", "lr", "sched", "cls", "warmup_steps", "min_lr", "fused", "x", "", 3, None]


@dataclass
class Findings:
    """What the blocks came to."""

    refused: Counter[str] = field(default_factory=Counter)
    built: int = 0
    constant: int = 0
    equal: int = 0
    differ: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """All that were found."""
        return self.built + sum(self.refused.values())

    def table(self) -> str:
        """Counts, a line each."""
        rows = [
            (self.blocks, "blocks"),
            (self.built, "built"),
            (self.constant, "  with a constant LR"),
            (self.equal, f"  with NeMo's LR curve, to {TOLERANCE} of it"),
            *((count, f"  with another LR curve: {why}") for why, count in self.differ.most_common()),
            *((count, f"refused: {why}") for why, count in self.refused.most_common()),
        ]
        return "\n".join(f"{count:6}  {what}" for count, what in rows)


def blocks(checkout: Path) -> Iterator[tuple[str, str, Any]]:
    """(file, path in it, block) of every mapping called `optim`."""
    for file in sorted(checkout.rglob("*.yaml")) + sorted(checkout.rglob("*.yml")):
        if not re.search(r"^\s*optim:", file.read_text(encoding="utf-8"), re.MULTILINE):
            continue
        document = OmegaConf.load(file)
        for keys in places(OmegaConf.to_container(document)):
            path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
            if keys[-1] == "optim" and OmegaConf.is_dict(block := select(document, path)):
                yield file.relative_to(checkout).as_posix(), path, block


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys and list elements."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def examine(file: str, path: str, block: Any, findings: Findings) -> None:
    """Build one block and compare its curve."""
    try:
        config = parse_optim(block, path)
        scheduler = build_optimizers(config, torch.nn.Linear(2, 1), max_steps=RUN).get("lr_scheduler")
    except ConfigError as error:
        where = error.path.removeprefix(path.removesuffix("optim"))
        findings.refused[f"{where}: {re.split('; did|[.] Allowed|: a config cannot', error.problem)[0]}"] += 1
        return
    except Exception as error:
        findings.violations.append(f"{file}, {path}: {type(error).__name__}: {error}")
        return
    findings.built += 1
    if scheduler is None:
        findings.constant += 1
        return
    why = difference(config, scheduler)
    if why is None:
        findings.equal += 1
        return
    findings.differ[why] += 1
    if config.sched is not None and config.sched.name != "StepLR":
        findings.violations.append(f"{file}, {path}: {why}")


def difference(config: OptimConfig, built: dict[str, Any]) -> str | None:
    """Where the LRs are not NeMo's; None if they are."""
    sched, scheduler = config.sched, built["scheduler"]
    assert sched is not None
    length = sched.max_steps or RUN
    base = float(scheduler.base_lrs[0])
    interval = "epoch" if sched.name == "ExponentialLR" else "step"
    if built["interval"] != interval:
        return f"{sched.name} is stepped per {built['interval']}, NeMo's per {interval} (the log says so)"
    if not hasattr(scheduler, "lr_at") and sched.name not in ("ExponentialLR", "StepLR"):
        return f"{sched.name} is none of NeMo's policies"
    steps = sorted({*range(50), *range(0, length + 100, max(1, length // 1000)), length - 1, length, length + 1})
    for step in steps[:50] if not hasattr(scheduler, "lr_at") else steps:
        ours = scheduler.lr_at(step, base) if hasattr(scheduler, "lr_at") else _stepped(scheduler, step)
        theirs = nemos_lr(sched.name, step, base, dict(sched.args), length)
        if not abs(ours - theirs) <= TOLERANCE * max(abs(theirs), TOLERANCE):
            return f"{sched.name} {dict(sched.args)}: {ours} at step {step}, NeMo has {theirs}"
    return None


def _stepped(scheduler: Any, step: int) -> float:
    while scheduler.last_epoch < step:
        scheduler.optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


def nemos_lr(name: str, step: int, base: float, args: dict[str, Any], max_steps: int) -> float:
    """By NeMo's class where NeMo is installed, else by its formula."""
    try:
        from nemo.core.optim import lr_scheduler as nemo
    except ImportError:
        return POLICIES[name](step, base, args, max_steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    optimizer.param_groups[0]["initial_lr"] = base
    if name in ("ExponentialLR", "StepLR"):
        return _stepped(nemo.AVAILABLE_SCHEDULERS[name](optimizer, **args), step)
    # the constructor takes the step that last_epoch says and one more
    scheduler = nemo.AVAILABLE_SCHEDULERS[name](optimizer, **{"max_steps": max_steps, **args, "last_epoch": step - 1})
    return optimizer.param_groups[0]["lr"] if step else scheduler.get_last_lr()[0]


def mutate(block: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The block with one place renamed, replaced, removed, nested, taken out of its nest, or with a key more."""
    changed = copy.deepcopy(block)
    path = rng.choice(places(changed))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], rng.choice(["rename", "replace", "remove", "nest", "unnest", "add"])
    if kind == "rename" and isinstance(parent, dict):
        cut = rng.randrange(len(key) + 1)
        parent[rng.choice([key[:cut] + rng.choice(["", "x", "_"]) + key[cut + 1 :], rng.choice(KEYS)])] = parent.pop(
            key
        )
    elif kind == "remove":
        del parent[key]
    elif kind == "nest":
        value = parent[key]
        parent[key] = rng.choice([[value], {"name": value}, {key: value}, {"params": value}, (value,)])
    elif kind == "unnest" and isinstance(parent, dict) and isinstance(parent[key], dict):
        parent.update(parent.pop(key))
    elif kind == "add" and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = rng.choice(VALUES)
    else:
        parent[key] = rng.choice(VALUES)
    return changed


def violation(block: dict[str, Any]) -> str | None:
    """What is wrong with how a block is parsed or refused; None: nothing."""
    began = time.process_time()  # of this process, whatever else the machine does
    try:
        config = parse_optim(copy.deepcopy(block))
    except ConfigError as error:
        if not re.match(r"optim\b", error.path) or not error.problem:
            return f"names no place: {error}"
        config = None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if (seconds := time.process_time() - began) > SLOW:
        return f"took {seconds:.1f} s"
    if config is not None and parse_optim(copy.deepcopy(block)) != config:
        return "parses to something else the second time"
    return None


def run_mutations(originals: list[dict[str, Any]], count: int, seed: int) -> tuple[int, list[str]]:
    """How many of `count` mutations parsed, and the violations."""
    rng, parsed, found = random.Random(seed), 0, []
    for number in range(count):
        block = mutate(rng.choice(originals), rng)
        if (wrong := violation(block)) is not None:
            found.append(f"mutation {number}: {block!r}: {wrong}")
            continue
        try:
            parse_optim(block)
            parsed += 1
        except ConfigError:
            pass
    return parsed, found


def main(arguments: list[str] | None = None) -> int:
    """The number of violations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="NEMO", help="folder of a NeMo checkout")
    parser.add_argument("--mutations", type=int, default=0, help="how many changed blocks to try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    findings, originals = Findings(), []
    for file, path, block in blocks(options.checkout):
        examine(file, path, block, findings)
        try:
            originals.append(OmegaConf.to_container(block, resolve=True))
        except OmegaConfBaseException:
            continue
    print(findings.table())
    if not findings.blocks:
        findings.violations.append(f"no optim block in {options.checkout}")
    elif options.mutations:
        parsed, found = run_mutations(originals, options.mutations, options.seed)
        findings.violations += found
        print(f"\n{options.mutations:6}  mutations, seed {options.seed}\n{parsed:6}  parsed")
        print(f"{options.mutations - parsed - len(found):6}  refused\n{len(found):6}  violations")
    for text in findings.violations:
        print(f"VIOLATION {text}", file=sys.stderr)
    return len(findings.violations)


if __name__ == "__main__":
    logging.getLogger("lightning_novograd").setLevel(logging.ERROR)  # or there is a line for every third block
    sys.exit(min(1, main()))
