"""`plot-schedule` of blocks with several schedules, and of several blocks."""

import drawn
import pytest
from drawn import refused

plot = drawn.plot


def lines(axes):
    return [list(line.get_ydata()) for line in axes.lines]


def test_a_schedule_that_only_a_rule_has_is_drawn_beside_the_constant_rest(plot):
    rule = "{match: '0.*', sched: {name: cosine, max_steps: 100}}"
    status, _, err, axes = plot(f"optim: {{name: sgd, lr: 0.1, param_groups: [{rule}]}}")
    assert (status, err, axes.get_xlim(), axes.get_title()) == (0, "", (0, 100), "SGD, CosineAnnealing")
    rest, own = lines(axes)
    assert {*rest} == {0.1}
    assert own[0] == 0.1 > own[50] > own[99]


def test_the_longest_schedule_of_several_rules_is_drawn_to_its_end(plot):
    rules = "[{match: a, sched: {name: cosine, max_steps: 30}}, {match: b, sched: {name: polynomial, max_steps: 60}}]"
    status, _, err, axes = plot(f"optim: {{name: sgd, lr: 0.1, param_groups: {rules}}}")
    assert (status, err, axes.get_xlim()) == (0, "", (0, 60))
    assert axes.get_title() == "SGD, CosineAnnealing, PolynomialDecayAnnealing"
    rules = "[{match: a, sched: {name: OneCycleLR, max_lr: 1.0, total_steps: 70}}]"
    _, _, err, axes = plot(f"optim: {{name: sgd, lr: 0.1, momentum: 0.9, param_groups: {rules}}}")
    assert (err, axes.get_xlim()) == ("", (0, 70))


def test_the_schedule_of_a_rule_is_refused_with_its_path(plot):
    rule = "{match: a, sched: {name: ReduceLROnPlateau, monitor: loss}}"
    said = refused(plot(f"{{name: sgd, param_groups: [{rule}]}}"))
    assert said.startswith("conf.yaml: optim.param_groups[0].sched.name: ReduceLROnPlateau follows a metric")
    rule = "{match: a, sched: {name: warmup, warmup_steps: 3}}"
    said = refused(plot(f"{{name: sgd, param_groups: [{rule}]}}"))
    assert said.startswith(
        "conf.yaml: optim.param_groups[0].sched: WarmupPolicy (interval: step) has no end of its own"
    )


SEVERAL = """
optim:
  generator: {name: adam, lr: 1.0e-4, sched: {name: cosine, max_steps: 100}}
  discriminator: {name: sgd, lr: 1.0e-3}
  critic: {name: adam, lr: 1.0e-2, sched: {name: StepLR, interval: step, step_size: 10, max_steps: %s}}
"""


def test_several_blocks_are_drawn_below_each_other(plot):
    status, _, err, first = plot(SEVERAL.replace(", max_steps: %s", ""), "--max-steps", "60")
    assert (status, err) == (0, "")
    every = first.get_figure(root=True).get_axes()
    assert [axes.get_title() for axes in every] == [
        "generator: Adam, CosineAnnealing",
        "discriminator: SGD, constant",
        "critic: Adam, StepLR",
    ]
    assert {axes.get_xlim() for axes in every} == {(0, 60)}
    assert {*lines(every[1])[0]} == {0.001}
    assert lines(every[2])[0][59] == pytest.approx(1e-7)


def test_a_block_without_a_schedule_is_drawn_as_long_as_the_others(plot):
    _, _, err, first = plot("optim: {a: {name: sgd}, b: {name: sgd, sched: {name: cosine, max_steps: 70}}}")
    assert err == ""
    assert [axes.get_xlim() for axes in first.get_figure(root=True).get_axes()] == [(0, 70), (0, 70)]


def test_mistakes_in_several_blocks_are_named(plot):
    assert refused(plot("optim: {a: {name: sgd}, b: {name: adam}}")).startswith(
        "conf.yaml: optim: no block has a schedule; the learning rates are constant"
    )
    assert refused(plot("optim: {a: {name: sgd}, b: {name: adm}}")).startswith("conf.yaml: optim.b.name: unknown")
    block = "{name: sgd, sched: {name: ReduceLROnPlateau, monitor: loss}}"
    assert refused(plot(f"optim: {{a: {block}}}")).startswith("conf.yaml: optim.a.sched.name: ReduceLROnPlateau")
