"""What each format keeps of a NovoGrad's state: options, step counts, and which norms belong to which layer."""

import pickle

import pytest
import torch
from optim.test_checkpoint import OTHERS, groups_of, our_state

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.checkpoint import convert_state_dict
from lightning_novograd.optim.checkpoint.files import why_not_plain


@pytest.mark.parametrize("format_", OTHERS)
def test_the_step_of_every_format_is_handed_on(format_):
    """NeMo and timm count in the layers' states, the others in the groups; a step that is said does not override it."""
    state = convert_state_dict(our_state()[0], target=format_, step=7)
    back = convert_state_dict(state, target="nemo", reg_inside_moment=True, step=3)
    assert [layer["step"] for layer in back["state"].values()] == [7, 7, 7]
    there = convert_state_dict(state, target="pytorch_optimizer", reg_inside_moment=True)
    assert [group["step"] for group in there["param_groups"]] == [7, 7]


@pytest.mark.parametrize("format_", ["pytorch_optimizer", "apex"])
def test_a_format_without_amsgrad_says_that_it_is_off(format_):
    """An optimizer that was built with amsgrad goes on without it: there is no maximum to go on from."""
    state, params = our_state()
    converted = convert_state_dict(convert_state_dict(state, target=format_), reg_inside_moment=True)
    assert [group["amsgrad"] for group in converted["param_groups"]] == [False, False]
    optimizer = NovoGrad(groups_of(params), amsgrad=True)
    optimizer.load_state_dict(converted)
    assert [group["amsgrad"] for group in optimizer.param_groups] == [False, False]


@pytest.mark.parametrize(("step", "refused"), [(3, True), (500, True), (1000, False)])
def test_apex_bias_correction_matters_while_either_moment_is_corrected(step, refused):
    """At step 500 the first moment (0.9) is past its correction, and the second (0.98) is not."""
    state = convert_state_dict(our_state(betas=(0.9, 0.98))[0], target="apex", step=step)
    for group in state["param_groups"]:
        group["bias_correction"] = True
    if not refused:
        convert_state_dict(state, reg_inside_moment=True)
        return
    with pytest.raises(ConfigError, match=f"param_groups.0.bias_correction.*at step {step} it still matters"):
        convert_state_dict(state, reg_inside_moment=True)


def test_apex_has_no_norm_of_a_bfloat16_layer():
    state = convert_state_dict(our_state()[0], target="apex")
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].bfloat16()
    norms = state["param_groups"][0]["exp_avg_sq"]
    norms[1] = norms[1][1:]  # as many as there are float32 layers
    with pytest.raises(ConfigError, match=r"the layers' moments are \['torch.bfloat16', 'torch.float32'\]"):
        convert_state_dict(state, reg_inside_moment=True)


def test_what_only_one_format_has_is_left_behind():
    state, _ = our_state()
    for format_ in OTHERS:
        there = convert_state_dict(state, target=format_)
        groups = convert_state_dict(there, reg_inside_moment=True)["param_groups"]
        common = {"params", "lr", "betas", "eps", "weight_decay", "grad_averaging", "amsgrad"}
        assert [group.keys() for group in groups] == [common, common], format_


def test_the_state_of_a_larc_is_refused_unless_the_optimizer_alone_is_meant():
    params = [torch.nn.Parameter(torch.ones(3, 2))]
    params[0].grad = torch.ones(3, 2)
    larc = LARC(NovoGrad(params))
    larc.step()
    state = larc.state_dict()
    with pytest.raises(ConfigError, match=r"\.larc: .* state of a LARC, which nemo does not have; .*set larc to False"):
        convert_state_dict(state, target="nemo")
    for group in state["param_groups"]:
        group["larc"] = False
    assert convert_state_dict(state, target="nemo")["state"][0]["exp_avg"].shape == (3, 2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (pickle.UnpicklingError("Unsupported global: GLOBAL os.system was not allowed"), ": it names os.system"),
        (EOFError(), ": it ends too early"),
        (RuntimeError("no central directory. This is an internal miniz error"), ": no central directory"),
        (RuntimeError("no central directory\nand a page of advice"), ": no central directory"),
        (KeyError("anything"), ""),
    ],
    ids=str,
)
def test_why_a_file_is_no_plain_data(error, said):
    assert why_not_plain(error) == said
