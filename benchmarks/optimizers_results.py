"""What the finished trials of optimizers.py say."""

from dataclasses import dataclass

from optimizers_runs import CONTENDERS, FACTORS, SEEDS, TASKS, Outcomes, Trial, best, plan, search
from tables import BETTER, OPEN, WORSE, compare

SUBJECT = "NovoGrad"
RIVALS = tuple(name for name in CONTENDERS if name != SUBJECT)


@dataclass(frozen=True)
class Results:
    """Finished trials, asked by task and optimizer.

    Args:
        outcomes: of the trials.
    """

    outcomes: Outcomes

    @property
    def missing(self) -> list[Trial]:
        """As far as is known: what follows from a search is unknown before it."""
        return [trial for trial in plan(self.outcomes) if trial not in self.outcomes]

    def names(self, task: str) -> list[str]:
        """Of the optimizers that apply to a task."""
        return [name for name in CONTENDERS if task in CONTENDERS[name].tasks]

    def is_searched(self, task: str, name: str) -> bool:
        """Whether all five trials are done."""
        return set(search(task, name)) <= set(self.outcomes)

    def chosen(self, task: str, name: str) -> Trial | None:
        """The best trial, once all are done."""
        return best(task, name, self.outcomes) if self.is_searched(task, name) else None

    def values(self, task: str, name: str, split: str, warmup: bool = True) -> list[float]:
        """The metric of the best settings, by seed, as many as there are."""
        if (chosen := self.chosen(task, name)) is None:
            return []
        trials = (Trial(task, name, chosen.point, warmup=warmup, seed=seed) for seed in SEEDS)
        return [getattr(self.outcomes[trial], split) for trial in trials if trial in self.outcomes]

    def judge(self, task: str, rival: str, split: str) -> str:
        """What NovoGrad is beside another; nothing is said of a loser whose learning rate is the outermost."""
        own, other = (self.values(task, name, split) for name in (SUBJECT, rival))
        said = compare(own, other, len(SEEDS))
        loser = {BETTER: rival, WORSE: SUBJECT}.get(said)
        return f"{OPEN}: the worse one's LR lies at the edge" if loser and self.at_edge(task, loser) else said

    def judge_warmup(self, task: str, name: str, split: str) -> str:
        """What an optimizer without warmup is beside itself with one."""
        without, with_one = (self.values(task, name, split, warmup) for warmup in (False, True))
        return compare(without, with_one, len(SEEDS))

    def at_edge(self, task: str, name: str) -> bool:
        """Whether the best trial has the largest or the smallest learning rate, and one beyond it is better still."""
        if (chosen := self.chosen(task, name)) is None:
            return False
        lrs = [trial.lr for trial in search(task, name)]
        better = self.better_factor(task, name)
        return (chosen.lr == min(lrs) and better < 1) or (chosen.lr == max(lrs) and better > 1) if better else False

    def at_factor(self, task: str, name: str, factor: float) -> Trial | None:
        """The trial with a multiple of the best learning rate, if it is done."""
        if (chosen := self.chosen(task, name)) is None:
            return None
        trial = Trial(task, name, chosen.point, factor=factor)
        return trial if trial in self.outcomes else None

    def sweep(self, task: str, name: str) -> dict[float, float]:
        """The dev metric by the factor of the learning rate; empty before all are done."""
        trials = {factor: self.at_factor(task, name, factor) for factor in sorted((*FACTORS, 1.0))}
        if not all(trials.values()):
            return {}
        return {factor: self.outcomes[trial].dev for factor, trial in trials.items() if trial}

    def better_factor(self, task: str, name: str) -> float | None:
        """The factor of the learning rate that is better on dev than the search's best, where there is one."""
        found = self.sweep(task, name)
        if not found or min(found.values()) >= found[1.0]:
            return None
        return min(found, key=lambda factor: found[factor])

    def show(self, trial: Trial) -> str:
        """The dev metric of a trial, for a table."""
        outcome = self.outcomes.get(trial)
        if outcome is None:
            return ""
        return "diverged" if outcome.diverged else TASKS[trial.task].show(outcome.dev)
