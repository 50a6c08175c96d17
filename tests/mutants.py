"""Mutation testing: plants single defects, a seeded sample of all that can be made, and sees whether a test notices.

`make test-mutants`, or with arguments, `OMP_NUM_THREADS=1 python tests/mutants.py --areas config --size 20`.

The defects are made by mutmut's operators and two of our own. Everything else is done here, because mutmut itself
leaves decorated functions out (every `step`), has no sample, and takes `recipes/` for a package of its own. A copy of
the repository is mutated, never the checkout. Each defect is tested in a fork of a process that has imported torch and
Lightning, by the tests that mirror the mutated module, its own file first, until one fails.
"""

import argparse
import ast
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache" / "mutants"
COPY = WORK / "copy"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.toml"
GOAL = 0.9

AREAS = {
    "optim": ["lightning_novograd/optim"],
    "lr_scheduler": ["lightning_novograd/lr_scheduler"],
    "config": ["lightning_novograd/config", "lightning_novograd/ranges.py"],
    "training": ["lightning_novograd/training", "lightning_novograd/large_batch"],
    "recipes": ["recipes/asr", "recipes/common"],
}
# Not run here: what needs a GPU or kernels that a copy does not have, and programs that stand in processes of their own
SKIPPED = (
    *("lightning_novograd/optim/kernels/cuda/", "lightning_novograd/optim/novograd/cuda.py"),
    *("lightning_novograd/optim/kernels/cpu/build.py", "lightning_novograd/optim/kernels/cpu/compiler.py"),
    *("lightning_novograd/optim/larc/native.py", "recipes/asr/data/corpora/espeak/worker.py"),
)
# The tests of a module are those of the first line whose name it begins with, the file of its own name first.
TESTS = {
    "lightning_novograd/optim/checkpoint/": [
        "tests/optim/test_checkpoint.py",
        "tests/optim/test_checkpoint_formats.py",
        "tests/optim/novograd/test_state.py",
    ],
    "lightning_novograd/optim/novograd/": ["tests/optim/novograd"],
    "lightning_novograd/optim/larc/": ["tests/optim/larc"],
    "lightning_novograd/optim/composite/": ["tests/optim/composite"],
    "lightning_novograd/optim/wrapped.py": ["tests/optim/composite", "tests/optim/larc/test_refusals.py"],
    "lightning_novograd/optim/kernels/": ["tests/optim/kernels"],
    "lightning_novograd/optim/pytorch.py": ["tests/optim/test_pytorch.py", "tests/test_registry.py", "tests/config"],
    "lightning_novograd/optim/layer_decay.py": ["tests/optim/test_layer_decay.py", "tests/config/test_rules.py"],
    "lightning_novograd/optim/selection.py": ["tests/optim/test_selection.py", "tests/optim/test_param_groups.py"],
    "lightning_novograd/ranges.py": ["tests/optim/test_pytorch.py", "tests/config"],
    "lightning_novograd/optim/": ["tests/optim/test_norms.py", "tests/optim/test_param_groups.py", "tests/optim/larc"],
    "lightning_novograd/lr_scheduler/pytorch.py": ["tests/lr_scheduler", "tests/config", "tests/training"],
    "lightning_novograd/lr_scheduler/": ["tests/lr_scheduler", "tests/commands/test_main.py"],
    "lightning_novograd/config/": [
        "tests/config",
        "tests/lr_scheduler/test_pytorch.py",
        "tests/training/test_manual.py",
        "tests/commands/test_main.py",
    ],
    "lightning_novograd/training/": ["tests/training"],
    "lightning_novograd/large_batch/": ["tests/large_batch"],
    "recipes/asr/model/": ["tests/recipes/model", "tests/recipes/test_limits.py"],
    "recipes/asr/weights/": ["tests/recipes/weights", "tests/recipes/recognition", "tests/recipes/test_limits.py"],
    "recipes/asr/recognition/": ["tests/recipes/recognition", "tests/recipes/test_evaluate.py"],
    "recipes/asr/text/": ["tests/recipes/text"],
    "recipes/asr/data/corpora/": [
        "tests/recipes/data/corpora",
        "tests/recipes/test_prepare.py",
        "tests/recipes/test_limits.py",
    ],
    "recipes/asr/data/": ["tests/recipes/data", "tests/recipes/test_limits.py"],
    "recipes/asr/prepare.py": ["tests/recipes/test_prepare.py"],
    "recipes/common/data/": ["tests/recipes/common/data", "tests/recipes/data", "tests/recipes/test_limits.py"],
    "recipes/common/section.py": [
        "tests/recipes/common/test_section.py",
        "tests/recipes/training",
        "tests/recipes/data",
    ],
    "recipes/common/batch_norm.py": ["tests/recipes/model"],
    "recipes/common/": [
        "tests/recipes/test_train.py",
        "tests/recipes/training",
        "tests/recipes/common",
        "tests/recipes/test_limits.py",
        "tests/integration/test_train.py",
    ],
    "recipes/asr/": [
        "tests/recipes/test_evaluate.py",
        "tests/recipes/test_train.py",
        "tests/recipes/training",
        "tests/recipes/test_limits.py",
        "tests/integration/test_evaluate.py",
        "tests/integration/test_train.py",
    ],
}


@dataclass(frozen=True)
class Mutant:
    """One defect: `old` and `new` are the lines of the module that differ, without indentation."""

    module: str
    line: int
    old: str
    new: str
    source: str

    def __str__(self) -> str:
        """As survivors are listed."""
        rows = [f"- {row}" for row in self.old.split("\n")] + [f"+ {row}" for row in self.new.split("\n")]
        return "\n    ".join([f"{self.module}:{self.line}", *rows])


def removed_statement(node: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """A call for its effect, or an assignment to an attribute or an item, that is not made."""
    effect = m.Expr(m.Call()) | m.AugAssign() | m.Assign([m.AssignTarget(m.Attribute() | m.Subscript())])
    if len(node.body) == 1 and m.matches(node.body[0], effect):
        yield node.with_changes(body=[cst.Pass()])


def other_branch(node: cst.If) -> Iterator[cst.If]:
    """`if not x` for `if x`."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


OPERATORS = [*mutation_operators, (cst.SimpleStatementLine, removed_statement), (cst.If, other_branch)]
# The wording of messages, types and what only a type checker reads are no behaviour.
UNTOUCHED = (
    m.Raise()
    | m.Annotation()
    | m.Import()
    | m.ImportFrom()
    | m.Call(m.Attribute(m.Name("log") | m.Name("warnings")))
    | m.If(m.Name("TYPE_CHECKING"))
    | m.Assign([m.AssignTarget(m.Name("__all__") | m.Name("log"))])
    | m.Expr(m.SimpleString() | m.ConcatenatedString())  # docstrings
    | m.Arg(keyword=m.Name("strict"))
)
# `zip(..., strict=True)` says what always holds
CHECKED_CALL = m.Call(m.Name("zip"))


class Places(cst.CSTVisitor):
    """Every node of a module that can be mutated, with its mutations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Collect and go on below, except where nothing is to be changed."""
        if m.matches(node, UNTOUCHED):
            return False
        if not m.matches(node, CHECKED_CALL):
            for kind, operator in OPERATORS:
                if isinstance(node, kind):
                    self.found.extend((node, changed) for changed in operator(node))
        return True


@cache
def places_in(path: Path) -> tuple[cst.Module, list[tuple[cst.CSTNode, cst.CSTNode]]]:
    """The module and its nodes with their mutations."""
    module, places = cst.parse_module(path.read_text(encoding="utf-8")), Places()
    module.visit(places)
    return module, places.found


def mutant_at(path: Path, index: int) -> Mutant | None:
    """A module's mutant number `index`; None: no valid Python."""
    module, places = places_in(path)
    original, source = module.code, module.deep_replace(*places[index]).code
    try:
        ast.parse(source)
    except SyntaxError:
        return None
    diff = list(difflib.unified_diff(original.splitlines(), source.splitlines(), n=0, lineterm=""))
    lines = {sign: "\n".join(row[1:].strip() for row in diff[2:] if row.startswith(sign)) for sign in "-+"}
    line = int(diff[2].split()[1].lstrip("-").split(",")[0])
    return Mutant(path.relative_to(ROOT).as_posix(), line, lines["-"], lines["+"], source)


def sample(area: str, size: int, seed: int) -> tuple[list[Mutant], int]:
    """`size` mutants of an area, each with the same chance, and how many there are."""
    places = [ROOT / place for place in AREAS[area]]
    paths = sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py")))
    paths = [path for path in paths if not path.relative_to(ROOT).as_posix().startswith(SKIPPED)]
    possible = [(path, index) for path in paths for index in range(len(places_in(path)[1]))]
    random.Random(f"{seed} {area}").shuffle(order := list(possible))
    mutants: dict[str, Mutant] = {}
    while order and len(mutants) < size:
        if (mutant := mutant_at(*order.pop())) is not None:
            mutants[mutant.source] = mutant
    return sorted(mutants.values(), key=lambda mutant: (mutant.module, mutant.line)), len(possible)


def rooms_of(module: str) -> tuple[str, ...]:
    """Where its tests are."""
    return tuple(next(places for prefix, places in TESTS.items() if module.startswith(prefix)))


def tests_of(module: str) -> tuple[str, ...]:
    """The same, with the file of its own name first: the likeliest to notice."""
    places, stem = rooms_of(module), Path(module).stem
    own = [
        path.relative_to(ROOT).as_posix()
        for place in places
        if (ROOT / place).is_dir()
        for path in sorted((ROOT / place).rglob(f"test_{stem}*.py"))
    ]
    return tuple(dict.fromkeys([*own, *places]))


def make_copy() -> None:
    """The repository as it is now, with the package as it would be installed beside it."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)
    package = COPY / ".installed" / "lightning_novograd"
    package.mkdir(parents=True)
    for path in [*(COPY / "lightning_novograd").iterdir(), COPY / "conf", COPY / "recipes"]:
        (package / path.name).symlink_to(path)
    (package.parent / "hydra_plugins").symlink_to(COPY / "hydra_plugins")


def warm_up() -> None:
    """Import what all tests need and nothing of ours: each fork imports that anew, mutated."""
    for name in ("torch", "lightning.pytorch", "torchmetrics", "hydra", "hypothesis", "pytest", "soundfile", "soxr"):
        importlib.import_module(name)
    os.chdir(COPY)
    installed = str(COPY / ".installed")
    sys.path.insert(0, installed)
    os.environ["PYTHONPATH"] = installed
    os.environ.setdefault("NOVOGRAD_TEST_DATA", str(ROOT.parent / "shared" / "data"))


def run_tests(tests: tuple[str, ...], limit: float, *, mutated: bool) -> int | None:
    """pytest's exit status in a fork; None: stopped after `limit` seconds."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        with (WORK / "output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        # bytecode of the unmutated modules stays valid: their files keep their times
        sys.dont_write_bytecode = mutated
        if mutated:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "-m"]
        os._exit(int(pytest.main([*options, "not slow and not gpu and not chaos", *tests])))
    end, done = time.monotonic() + limit, 0
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return None
    finally:  # too late, or Ctrl-C, which does not reach a session of its own
        if not done:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@cache
def usual_seconds(tests: tuple[str, ...]) -> float:
    """How long tests take without a defect; they have to pass."""
    begin = time.monotonic()
    if run_tests(tests, 600, mutated=False) != 0:
        sys.exit(f"{' '.join(tests)}: fails without a mutant\n{(WORK / 'output.txt').read_text()[-3000:]}")
    return time.monotonic() - begin


def is_noticed(mutant: Mutant) -> bool:
    """Whether a test fails, or never ends, with the defect in place."""
    path, tests = COPY / mutant.module, tests_of(mutant.module)
    limit = 3 * usual_seconds(rooms_of(mutant.module)) + 20
    original, times = path.read_bytes(), path.stat()
    try:
        path.write_text(mutant.source, encoding="utf-8")
        return run_tests(tests, limit, mutated=True) != 0
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main() -> int:
    """Run the samples, print what survived and a row per area; 1 if an area is below the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--size", type=int, default=30, help="mutants of each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="of the same sample only what survived the last run")
    args = parser.parse_args()

    reasons = {(e["module"], e["old"], e["new"]): e["reason"] for e in tomllib.loads(EQUIVALENT.read_text())["mutant"]}
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    samples = {area: sample(area, args.size, args.seed) for area in args.areas}
    make_copy()
    warm_up()
    rows = []
    for area, (mutants, possible) in samples.items():
        kept = WORK / f"{area}_{args.seed}_{args.size}.json"
        before = json.loads(kept.read_text()) if args.again else None
        counts: Counter[str] = Counter()
        survivors = []
        for mutant in mutants:
            named = {key: value for key, value in asdict(mutant).items() if key in ("module", "old", "new")}
            if tuple(named.values()) in reasons:
                counts["equivalent"] += 1
            elif (before is not None and named not in before) or is_noticed(mutant):
                counts["noticed"] += 1
            else:
                counts["survived"] += 1
                survivors.append(named)
                print(mutant)
            print(f"{area}: {counts.total()} of {len(mutants)}, {counts['survived']} survived", file=sys.stderr)
        kept.write_text(json.dumps(survivors, indent=1))
        rows.append((area, possible, len(mutants), counts))

    print(f"\nseed {args.seed}\n| area | possible | sample | noticed | equivalent | survived | noticed of the rest |")
    print("|---|---|---|---|---|---|---|")
    shares = []
    for area, possible, size, counts in rows:
        shares.append(counts["noticed"] / max(1, size - counts["equivalent"]))
        figures = f"{counts['noticed']} | {counts['equivalent']} | {counts['survived']}"
        print(f"| {area} | {possible} | {size} | {figures} | {shares[-1]:.0%} |")
    return int(min(shares) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
