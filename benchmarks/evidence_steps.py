"""What `make evidence` measures, in its order: trainings first, then what must not be disturbed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A program that a step runs, with what stands for this machine's paths and numbers in braces.

    Args:
        words: behind ``python``: ``{out}`` is the step's page without its suffix, ``{results}`` the folder of the
            results, ``{state}`` one for what is only needed on the way, ``{fsdd}`` a clone of FSDD, ``{corpus}`` what
            prepare.py made of it, ``{jobs}`` the cores, ``{date}`` the evidence's.
        threads: of torch in each process.
        shows: what of it belongs on the step's page: ``"output"``, or a file that it writes, or nothing.
    """

    words: str
    threads: int = 1
    shows: str = "output"


@dataclass(frozen=True)
class Step:
    """Some commands and the page of results that they make.

    Args:
        name: of the page's file, before hardware and date.
        title: of the page; None: the commands write it.
        about: a paragraph below the title.
        commands: run one after the other; each goes on where it was broken off, or begins anew.
        picture: suffix of a picture beside the page, that the page shows.
        needs: what must be given: ``nemo`` is a Python that has NeMo.
    """

    name: str
    title: str | None
    commands: tuple[Command, ...]
    about: str = ""
    picture: str | None = None
    needs: str | None = None


def _own_page(words: str, **options: int) -> Command:
    return Command(words, shows="", **options)


_OPTIMIZERS = "benchmarks/optimizers.py"
_LARGE_BATCH = "benchmarks/large_batch.py"
_STEP = '"torch SGD fused" "torch AdamW fused" "ours fused" "ours fused, no C++"'

STEPS = (
    Step(
        "optimizers",
        None,
        (
            _own_page(f"{_OPTIMIZERS} --runs {{out}}.jsonl --fsdd {{fsdd}} --jobs {{jobs}}"),
            _own_page(f"{_OPTIMIZERS} --costs {{out}}.json"),
            _own_page(f"{_OPTIMIZERS} --runs {{out}}.jsonl --costs {{out}}.json --report {{out}}.md"),
        ),
    ),
    Step(
        "large_batch",
        None,
        (
            _own_page(f"{_LARGE_BATCH} --runs {{out}}.jsonl --fsdd {{fsdd}} --jobs {{jobs}}"),
            _own_page(f"{_LARGE_BATCH} --runs {{out}}.jsonl --report {{out}}.md"),
        ),
    ),
    Step(
        "novograd_adamw",
        "NovoGrad and AdamW under the same code: quartznet_small on FSDD",
        (Command("benchmarks/novograd_adamw.py --fsdd {fsdd} --out {out}"),),
        "2000 training utterances of five speakers (connected digits), 200 dev utterances of the same, 200 test "
        "utterances of a speaker never heard; 8 epochs of 62 steps of 32, weights of the last one.",
        picture="png",
    ),
    Step(
        "augmented",
        "FSDD, augmented: experiment=fsdd_novograd",
        (Command("benchmarks/augmented.py --fsdd {fsdd} --jobs {jobs}"),),
        "Weights of the last epoch; the test speaker is never heard in training.",
    ),
    Step(
        "transfer",
        "From synthesized digits to real ones: quartznet_small",
        (Command("benchmarks/transfer.py --fsdd {fsdd} --first-epochs 5"),),
        "The first model learns digits of eSpeak NG's voices; all then learn FSDD, everything else alike.",
    ),
    Step(
        "deep_linear",
        "Two weights and a product",
        (Command("recipes/deep_linear/train.py --out {results}/deep_linear_{date}"),),
    ),
    Step(
        "faults",
        "What becomes of a run when something fails",
        (Command("-m pytest tests/chaos --faults {state}/faults.md", shows="{state}/faults.md"),),
    ),
    Step(
        "optimizer_step",
        "One optimizer step on a CPU",
        tuple(
            Command(f"benchmarks/optimizer_step.py --model {model} --device cpu --optimizers {_STEP}", threads=threads)
            for model in ("quartznet_15x5", "jasper_10x5dr")
            for threads in (1, 2)
        ),
    ),
    Step("larc_step", "A step under LARC on a CPU", (Command("benchmarks/larc_step.py --threads 1"),)),
    Step("composite_step", "A Composite's step on a CPU", (Command("benchmarks/composite_step.py --threads 1"),)),
    Step("layer_monitor", "What LayerMonitor costs", (Command("benchmarks/layer_monitor.py"),)),
    Step("noise_scale", "What GradientNoiseScale costs", (Command("benchmarks/noise_scale.py"),)),
    Step(
        "recipe_throughput",
        "The speech recipe's speed, and where a step's time goes",
        (
            _own_page("recipes/asr/prepare.py fsdd --root {fsdd} --out {corpus}"),
            Command("benchmarks/recipe_throughput.py --corpus {corpus}"),
        ),
    ),
    Step(
        "nemo_throughput",
        "The speech recipe's speed beside NeMo's EncDecCTCModel",
        (
            _own_page("recipes/asr/prepare.py fsdd --root {fsdd} --out {corpus}"),
            Command("benchmarks/recipe_throughput.py --corpus {corpus} --nemo-python {nemo}"),
        ),
        needs="nemo",
    ),
    Step(
        "ddp_scaling",
        "How well the recipe scales over ranks of one thread each",
        (
            _own_page("recipes/asr/prepare.py fsdd --root {fsdd} --out {corpus}"),
            Command("benchmarks/ddp_scaling.py --corpus {corpus}"),
        ),
    ),
    Step("scaling_model", "CPU seconds for docs/scaling.md", (Command("benchmarks/scaling_model.py --measure"),)),
)
