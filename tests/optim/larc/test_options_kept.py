"""LARC's options are saved, loaded and converted, and never lost without a word."""

import copy
import pickle
import warnings

import pytest
import torch
from optim.larc.larc_cases import INNER, SGD, AdamW, assert_same, every_inner, make_params, run

from lightning_novograd.errors import ConfigError
from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.checkpoint import convert_checkpoint, convert_state_dict
from lightning_novograd.optim.larc import LARC

FORMATS = ["nemo", "timm", "pytorch_optimizer", "apex"]
ARGUMENTS = {"trust_coefficient": 0.3, "clip": False, "eps": 1e-3, "min_update": 1e-4, "target": "update"}


def sgd(params=None, **options):
    return SGD(params or make_params(), lr=0.1, momentum=0.9, **options)


# --- the target ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize(("saved", "built"), [("update", "gradient"), ("gradient", "update"), ("update", "auto")])
def test_the_target_is_saved_as_the_other_options(saved, built, duplicate, kernels):
    params = make_params()
    larc = LARC(sgd(params), trust_coefficient=0.01, target=saved)
    run(larc, params, 2)
    if duplicate == "state_dict":
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = LARC(sgd(others), target=built)
        other.load_state_dict(copy.deepcopy(larc.state_dict()))
    else:
        other = copy.deepcopy(larc) if duplicate == "deepcopy" else pickle.loads(pickle.dumps(larc))
        others = other.param_groups[0]["params"]
    assert other.target == saved
    assert f"target={saved!r}" in repr(other)
    run(larc, params, 2, first=2)
    run(other, others, 2, first=2)
    assert_same(params, others)


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_state_without_a_target_leaves_it_alone(target):
    saved = LARC(sgd(), target="update").state_dict()
    for group in saved["param_groups"]:
        del group["larc_target"]
    larc = LARC(sgd(), target=target)
    larc.load_state_dict(saved)
    assert larc.target == target
    larc.load_state_dict(saved)
    assert larc.target == target
    larc.load_state_dict(sgd().state_dict())
    assert larc.state_dict()["param_groups"][0]["larc_target"] == target
    larc.optimizer.load_state_dict(sgd().state_dict())
    assert larc.target == target
    larc.add_param_group({"params": make_params(1)})


def test_a_pickle_of_before_the_target_was_saved_has_it():
    larc = LARC(sgd(), target="update")
    for group in larc.param_groups:
        del group["larc_target"]
    old = LARC.__new__(LARC)
    old.__setstate__({"optimizer": larc.optimizer, "target": "update"})
    assert old.target == "update"


def test_several_targets_are_refused():
    params = make_params()
    saved = LARC(sgd([{"params": params[:1]}, {"params": params[1:]}])).state_dict()
    saved["param_groups"][1]["larc_target"] = "update"
    larc = LARC(sgd([{"params": params[:1]}, {"params": params[1:]}]))
    with pytest.raises(ValueError, match="their larc_target are gradient, update"):
        larc.load_state_dict(saved)
    with pytest.raises(ValueError, match="one target for all param groups"):
        larc.add_param_group({"params": make_params(1), "larc_target": "update"})
    with pytest.raises(ValueError, match="larc_target value: 'updat'; did you mean 'update'"):
        larc.add_param_group({"params": make_params(1), "larc_target": "updat"})
    assert larc.target == "gradient"
    assert len(larc.param_groups) == 2


# --- an optimizer that has loaded the state of a LARC, and is wrapped then -------------------------------------------


@every_inner
def test_what_is_asked_for_counts_and_what_was_loaded_is_named(inner):
    params = make_params()
    groups = [{"params": params[:1]}, {"params": params[1:], "larc": False}]
    saved = LARC(INNER[inner](copy.deepcopy(groups)), target="update").state_dict()
    bare = INNER[inner](groups)
    bare.load_state_dict(saved)
    with pytest.warns(UserWarning, match=r"larc_trust_coefficient=0\.02 in param group 0 \(now 0\.3\)") as caught:
        larc = LARC(bare, **ARGUMENTS)
    for name, old in (("clip", True), ("eps", 1e-8), ("min_update", 0.0)):
        assert f"larc_{name}={old!r} in param group 1 (now {ARGUMENTS[name]!r})" in str(caught[0].message)
    for group in larc.param_groups:
        assert {name: group[f"larc_{name}"] for name in ARGUMENTS} == ARGUMENTS
    assert [group["larc"] for group in larc.param_groups] == [True, False]


def test_equal_options_need_no_word():
    bare = sgd()
    bare.load_state_dict(LARC(sgd(), **ARGUMENTS).state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LARC(bare, **ARGUMENTS).target == "update"


def test_another_target_is_named():
    bare = sgd()
    bare.load_state_dict(LARC(sgd(), target="update").state_dict())
    with pytest.warns(UserWarning, match=r"larc_target='update' in param group 0 \(now 'gradient'\)"):
        assert LARC(bare).target == "gradient"


def test_options_of_a_group_of_its_own_count_as_before():
    larc = LARC(sgd([{"params": make_params(), "larc_trust_coefficient": 0.5, "larc_clip": False}]), 0.1)
    assert larc.param_groups[0]["larc_trust_coefficient"] == 0.5
    assert larc.param_groups[0]["larc_clip"] is False


def test_a_refused_wrapping_leaves_the_loaded_options():
    bare = sgd()
    bare.load_state_dict(LARC(sgd(), trust_coefficient=0.5).state_dict())
    with pytest.raises(ValueError, match=r"larc_eps value: -1\.0"):
        LARC(bare, eps=-1.0)
    assert bare.param_groups[0]["larc_trust_coefficient"] == 0.5


# --- other implementations -------------------------------------------------------------------------------------------


def novograd_state(**larc):
    params = make_params()
    groups = [{"params": params[:1], **larc}, {"params": params[1:], "larc": False}]
    optimizer = LARC(NovoGrad(groups, betas=(0.9, 0.5)))
    run(optimizer, params, 1)
    return optimizer.state_dict()


@pytest.mark.parametrize("format_", FORMATS)
def test_a_state_under_larc_is_not_converted_to_one_without(format_):
    state = novograd_state()
    for convert in (convert_state_dict, convert_checkpoint):
        with pytest.raises(ConfigError, match=f"the state of a LARC, which {format_} does not have") as caught:
            convert(state, target=format_)
        assert caught.value.path == "param_groups.0.larc"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_state_that_larc_leaves_alone_is_converted_without_its_options(format_):
    converted = convert_state_dict(novograd_state(larc=False), target=format_)
    assert not any(key.startswith("larc") for group in converted["param_groups"] for key in group)
    assert converted["param_groups"][0]["betas"] == (0.9, 0.5)


def test_our_own_format_keeps_them():
    state = novograd_state()
    assert convert_state_dict(state)["param_groups"] == state["param_groups"]


def test_an_adamw_under_larc_keeps_its_target_through_a_file(tmp_path):
    larc = LARC(AdamW(make_params()), trust_coefficient=0.5)
    torch.save(larc.state_dict(), tmp_path / "state.pt")
    other = LARC(AdamW(make_params()))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["larc_target"] == "update"
    assert other.param_groups[0]["larc_trust_coefficient"] == 0.5


def test_a_group_that_is_added_takes_the_target_that_was_loaded():
    saved = LARC(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), target="update").state_dict()
    optimizer = LARC(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    optimizer.load_state_dict(saved)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert [group["larc_target"] for group in optimizer.param_groups] == ["update", "update"]
    assert optimizer.target == "update"
