"""The page and the picture of what large_batch.py has measured."""

import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from large_batch_runs import (
    BATCHES,
    CONTENDERS,
    KIND,
    SEARCH_SEED,
    SEEDS,
    Outcome,
    Outcomes,
    Trial,
    at_edge,
    best_exponent,
    plan,
    steps_of,
)
from tables import BETTER, NO_DIFFERENCE, OPEN, WORSE, row, spread, table

RATES = ("dev_wer", "test_wer", "dev_cer", "test_cer")
LEAST = 0.05  # % WER in the picture, half a word: a logarithmic axis has no 0
NO_WORDS = 0.995  # a WER from which on nothing is compared
SETS = ("dev", "test")
PAIRS = [
    (layer_wise.name, other.name)
    for layer_wise in CONTENDERS.values()
    if layer_wise.is_layer_wise
    for other in CONTENDERS.values()
    if not other.is_layer_wise
]
NEITHER = "no words yet"
UNTUNED = "open: the worse one's best LR lies at the edge"


SETUP = """
{date}; torch {torch}, Lightning {lightning}, Python {python}, Linux; {cpu}, {cores} cores, 1 thread, other work on
the machine (nothing here is about time).

{utterances} training utterances of five speakers (connected digits), 200 dev utterances of the same, 200 test
utterances of a speaker never heard; about 1000 words in each set, so one word is 0.1 %. Nothing is augmented: the
optimizers alone differ. Every run hears the same number of utterances, so a batch of B makes epochs x {utterances} /
B optimizer steps. All batches are accumulated from micro-batches of {micro_batch}, so that BatchNorm sees the same in
all of them. Cosine schedule down to 0 with a tenth of warmup; weights of the last step.

Each optimizer has five learning rates at each batch, a factor of 3.16 apart, seed {search_seed}; the middle one grows
with the square root of the batch. Where the best of one optimizer is the first or the last, all four get one more on
that side. The best by dev WER (equal ones, and those of 100 % or more: by dev CER) is run with two more seeds. The LR
is searched on the dev set with one of the three seeds, so dev is a little flattered; test is not. Not searched:
NovoGrad betas 0.9 and 0.25, weight decay 0.001; AdamW betas 0.9 and 0.98, weight decay 0.001; SGD Nesterov momentum
0.9, weight decay 0.0001; LARC around the same SGD, trust coefficient 0.02, clipped; biases and norms without weight
decay but for NovoGrad's, as in conf/optim. A run that diverged counts as 100 %.
"""


@dataclass(frozen=True)
class Section:
    """The runs of one file.

    Args:
        settings: of its first line.
        outcomes: of its trials.
        batches: that it is to have.
    """

    settings: dict[str, Any]
    outcomes: Outcomes
    batches: Sequence[int]

    @property
    def epochs(self) -> float:
        return self.settings["epochs"]

    def steps(self, batch: int) -> int:
        return steps_of(batch, self.epochs, self.settings["utterances"])

    @property
    def missing(self) -> list[Trial]:
        """As far as is known: further LRs and the other seeds follow from the search."""
        return [trial for trial in plan(self.outcomes, self.batches) if trial not in self.outcomes]

    def of_best_lr(self, optimizer: str, batch: int) -> list[Outcome]:
        """By seed, as many as there are."""
        best = best_exponent(optimizer, batch, self.outcomes)
        found = {
            trial.seed: outcome
            for trial, outcome in self.outcomes.items()
            if (trial.optimizer, trial.batch, trial.exponent) == (optimizer, batch, best)
        }
        return [found[seed] for seed in SEEDS if seed in found]


def write_report(runs: Sequence[Path], page: Path) -> None:
    """Write the page, and beside it the picture.

    Args:
        runs: files of runs; the first is to have all batches, the others those that they have.
        page: a Markdown file to write.
    """
    sections: list[Section] = []
    for path in runs:
        settings, outcomes = KIND.read(path)
        if not settings:
            raise SystemExit(f"{path} holds no runs")
        batches = sorted({trial.batch for trial in outcomes}) if sections else BATCHES
        sections.append(Section(settings, outcomes, batches))
    picture = page.with_suffix(".png")
    draw(sections, picture)
    lines = head(sections, picture.name)
    for section in sections:
        lines += ["", f"## {section.epochs:g} epochs", "", *progress(section), "", *results(section)]
        lines += ["", *verdicts(section), "", *search_table(section)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(sections: Sequence[Section], picture: str) -> list[str]:
    """What was asked, and under which conditions."""
    settings = sections[0].settings
    overrides = "".join(f" {text}" for text in settings["overrides"])
    commands = []
    for section in sections:
        some = "" if section.batches == BATCHES else f" --batches {' '.join(map(str, section.batches))}"
        options = f"--runs FILE --jobs 2 --epochs {section.epochs:g}{some}{overrides and ' --'}{overrides}"
        commands.append(f"    OMP_NUM_THREADS=1 python benchmarks/large_batch.py --fsdd CLONE {options}")
    paragraphs = [
        textwrap.fill(text, 120) for text in SETUP.format(**settings, search_seed=SEARCH_SEED).strip().split("\n\n")
    ]
    title = "# Large batches: NovoGrad, AdamW, SGD and SGD with LARC, quartznet_small on FSDD"
    body = [line for paragraph in paragraphs[1:] for line in ("", paragraph)]
    return [title, "", paragraphs[0], "", *commands, *body, "", f"![WER against batch size]({picture})"]


def progress(section: Section) -> list[str]:
    """Which runs are missing."""
    diverged = sum(outcome.diverged for outcome in section.outcomes.values())
    text = f"{len(section.outcomes)} runs, {diverged} of them diverged."
    if missing := Counter(trial.batch for trial in section.missing):
        listed = ", ".join(f"{missing[batch]} of batch {batch}" for batch in section.batches if missing[batch])
        text += f" **Not complete**: at least {missing.total()} runs are missing, {listed}."
    return [textwrap.fill(text, 120)]


def results(section: Section) -> list[str]:
    """Error rates of the best LRs, with their spread over seeds."""
    lines = ["Median over seeds (smallest to largest), %:", ""]
    lines += table("batch", "steps", "optimizer", "LR", "dev WER", "test WER", "dev CER", "test CER", "seeds", "")
    for batch in section.batches:
        for name in CONTENDERS:
            found = section.of_best_lr(name, batch)
            exponent = best_exponent(name, batch, section.outcomes)
            if exponent is None:
                lines.append(row(batch, section.steps(batch), name, *["-"] * 5, 0, "missing"))
                continue
            rates = [spread([getattr(outcome, rate) for outcome in found]) for rate in RATES]
            lr = f"{Trial(batch, name, exponent, SEARCH_SEED).lr:g}"
            lines.append(row(batch, section.steps(batch), name, lr, *rates, len(found), notes(section, name, batch)))
    return lines


def notes(section: Section, optimizer: str, batch: int) -> str:
    """What there is to know of a cell."""
    said = []
    is_searched = not any((t.optimizer, t.batch, t.seed) == (optimizer, batch, SEARCH_SEED) for t in section.missing)
    if is_searched and at_edge(optimizer, batch, section.outcomes):
        said.append("LR at the edge of what was searched")
    of_cell = [o for t, o in section.outcomes.items() if (t.optimizer, t.batch) == (optimizer, batch)]
    if diverged := sum(outcome.diverged for outcome in of_cell):
        said.append(f"{diverged} of {len(of_cell)} runs diverged")
    if any((t.optimizer, t.batch) == (optimizer, batch) for t in section.missing):
        said.append("not complete")
    return "; ".join(said)


def verdicts(section: Section) -> list[str]:
    """The null hypothesis: tuned, SGD and AdamW do as well as NovoGrad and SGD with LARC."""
    lines = [
        "The null hypothesis is that of arXiv 2102.06356: tuned, Nesterov and Adam match layer-wise optimizers. The",
        "first of each pair beside the second, by dev WER / test WER; where the ranges over the seeds overlap, no",
        "difference is seen, which with three seeds does not say that there is none. Who loses with the outermost LR",
        "of the search was not tuned, and nothing is said:",
        "",
        *table("batch", *(f"{first} : {second}" for first, second in PAIRS)),
    ]
    counts: dict[str, Counter[str]] = {name: Counter() for name in SETS}
    for batch in section.batches:
        cells = []
        for first, second in PAIRS:
            both = [section.of_best_lr(name, batch) for name in (first, second)]
            texts = []
            for name in SETS:
                said = judge(both, f"{name}_wer")
                loser = {BETTER: second, WORSE: first}.get(said)
                if loser is not None and at_edge(loser, batch, section.outcomes):
                    said = UNTUNED
                counts[name][said] += 1
                # WER is 100 % until the first word is right; characters come before
                texts.append(f"{said} (CER: {judge(both, f'{name}_cer')})" if said == NEITHER else said)
            cells.append(" / ".join(texts))
        lines.append(row(batch, *cells))
    lines.append("")
    for name in SETS:
        n = counts[name]
        decided = n[NO_DIFFERENCE] + n[BETTER] + n[WORSE]
        text = (
            f"- {name}: of {decided} pairs {n[NO_DIFFERENCE]} show no difference; in {n[BETTER]} the layer-wise "
            f"optimizer is better, in {n[WORSE]} worse"
        )
        text += f"; {n[NEITHER]} more have learned no words yet" if n[NEITHER] else ""
        unknown = n[OPEN] + n[UNTUNED]
        text += f"; {unknown} more {'is' if unknown == 1 else 'are'} open" if unknown else ""
        text += f". By chance alone {decided / 10:.1f} of {decided} would differ" if decided else ""
        lines.append(textwrap.fill(text, 118, subsequent_indent="  "))
    lines += [
        "",
        "Three values lie apart from three others by chance alone in one of ten comparisons (2 x 3! x 3! / 6!), so no",
        "single cell is proof. Cells of one batch share runs, and dev has the seed that chose the LR: their count is",
        "no count of independent tests. Nobody's gradients are clipped by their norm.",
    ]
    return lines


def judge(pair: Sequence[list[Outcome]], rate: str) -> str:
    """What the runs of the first of two optimizers are beside the second's, by an error rate."""
    first, second = ([getattr(outcome, rate) for outcome in outcomes] for outcomes in pair)
    return compare(first, second)


def compare(first: Sequence[float], second: Sequence[float]) -> str:
    """What the WERs of an optimizer's seeds are beside another's.

    Args:
        first: of the one that is judged, fractions.
        second: of the other.
    """
    said = tables.compare(first, second, len(SEEDS))
    is_neither = said != OPEN and min(statistics.median(first), statistics.median(second)) >= NO_WORDS
    return NEITHER if is_neither else said


def search_table(section: Section) -> list[str]:
    """How much depends on the LR."""
    tried = sorted({trial.exponent for trial in section.outcomes if trial.seed == SEARCH_SEED})
    lines = [
        f"The search: dev WER / dev CER in %, seed {SEARCH_SEED}, for multiples of the middle LR; the best is bold:",
        "",
    ]
    lines += table("batch", "optimizer", "middle", *(f"x {10 ** (exponent / 2):.2g}" for exponent in tried))
    for batch in section.batches:
        for name in CONTENDERS:
            best = best_exponent(name, batch, section.outcomes)
            cells = []
            for exponent in tried:
                outcome = section.outcomes.get(Trial(batch, name, exponent, SEARCH_SEED))
                text = "" if outcome is None else f"{100 * outcome.dev_wer:.1f} / {100 * outcome.dev_cer:.1f}"
                if outcome is not None and outcome.diverged:
                    text = "diverged"
                cells.append(f"**{text}**" if exponent == best else text)
            lines.append(row(batch, name, f"{Trial(batch, name, 0, SEARCH_SEED).lr:g}", *cells))
    return lines


def draw(sections: Sequence[Section], path: Path) -> None:
    """WER against batch, a line per optimizer with the range over seeds; a row of panels for each file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8 * len(sections)), layout="constrained")
    for panels, section in zip(figure.subplots(len(sections), 2, sharey="row", squeeze=False), sections, strict=True):
        for axes, name in zip(panels, SETS, strict=True):
            for index, optimizer in enumerate(CONTENDERS):
                _draw_line(axes, section, name, optimizer, 2 ** (0.1 * (index - 1.5)))
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_ylim(LEAST / 1.2, 150)
            axes.set_xticks(section.batches, [f"{b}\n{section.steps(b)} steps" for b in section.batches])
            axes.set_xlim(min(section.batches) / 1.5, max(section.batches) * 1.5)
            axes.minorticks_off()
            axes.set_yticks([0.1, 0.3, 1, 3, 10, 30, 100], ["0.1", "0.3", "1", "3", "10", "30", "100"])
            axes.set_title(f"{name}, {section.epochs:g} epochs")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("WER, %: median and range of the seeds")
    for axes in figure.axes[-2:]:
        axes.set_xlabel("global batch, utterances")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # no place in the axes is free of curves
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=100)


def _draw_line(axes: Any, section: Section, name: str, optimizer: str, shift: float) -> None:
    found = {batch: section.of_best_lr(optimizer, batch) for batch in section.batches}
    batches = [batch for batch in section.batches if found[batch]]
    rates = [[max(LEAST, 100 * getattr(o, f"{name}_wer")) for o in found[batch]] for batch in batches]
    medians = [statistics.median(values) for values in rates]
    below = [median - min(values) for median, values in zip(medians, rates, strict=True)]
    above = [max(values) - median for median, values in zip(medians, rates, strict=True)]
    places = [batch * shift for batch in batches]
    axes.errorbar(places, medians, yerr=[below, above], marker="o", markersize=4, capsize=3, label=optimizer)
