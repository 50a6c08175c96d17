"""State dicts of other NovoGrads become ours and go back; what they compute differently is refused."""

import copy
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lightning_novograd.commands.convert_checkpoint import _CONTAINERS, convert_file
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.checkpoint import convert_checkpoint, convert_state_dict, detect_format

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.5), "weight_decay": 0.01}
OTHERS = ["nemo", "timm", "pytorch_optimizer", "apex"]


def make_params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(4, 3), (5,), (), (2,)]]


def train(optimizer, params, steps, first=0, dtype: torch.dtype | None = None) -> None:
    """The last layer never gets a gradient, so that it has no state."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step + 1)
        for param in params[:-1]:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def groups_of(params, **options) -> list[dict]:
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}]


def our_state(steps: int = 3, dtype: torch.dtype = torch.float32, **options) -> tuple[dict, list]:
    params = make_params(dtype)
    optimizer = NovoGrad(groups_of(params), **{**OPTIONS, **options})
    train(optimizer, params, steps)
    return copy.deepcopy(optimizer.state_dict()), params


@pytest.mark.parametrize("format_", ["ours", *OTHERS])
def test_format_is_recognized(format_):
    state, _ = our_state()
    assert detect_format(convert_state_dict(state, target=format_)) == format_


@pytest.mark.parametrize("format_", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_training_goes_on_after_a_round_trip(format_, dtype):
    if format_ == "apex" and dtype == torch.bfloat16:
        pytest.skip("apex has no bfloat16")
    params = make_params(dtype)
    optimizer = NovoGrad(groups_of(params), **OPTIONS)
    train(optimizer, params, 3)
    there = convert_state_dict(copy.deepcopy(optimizer.state_dict()), target=format_, step=3)
    back = convert_state_dict(there, reg_inside_moment=True)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = NovoGrad(groups_of(resumed))
    other.load_state_dict(back)
    train(optimizer, params, 3, first=3)
    train(other, resumed, 3, first=3)
    for a, b in zip(params, resumed, strict=True):
        if format_ == "apex":  # the root of a second moment, squared again, is off by a rounding
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("format_", ["nemo", "timm", "pytorch_optimizer"])
def test_others_load_directly(format_):
    state, params = our_state(amsgrad=format_ != "pytorch_optimizer")
    optimizer = NovoGrad(groups_of(params), luc=True)
    optimizer.load_state_dict(convert_state_dict(state, target=format_, step=3))
    loaded = optimizer.state_dict()
    assert loaded["state"].keys() == state["state"].keys()
    for layer_id, layer in state["state"].items():
        assert loaded["state"][layer_id].keys() == layer.keys()
        assert all(torch.equal(loaded["state"][layer_id][key], value) for key, value in layer.items())
    assert [group["lr"] for group in loaded["param_groups"]] == [0.05, 0.01]
    assert all(group["betas"] == (0.9, 0.5) for group in loaded["param_groups"])
    assert all(group["luc"] for group in loaded["param_groups"]), "what is not stored stays as the optimizer has it"


def test_loading_apex_state_says_how_to_convert_it():
    state, params = our_state()
    with pytest.raises(ConfigError, match="reg_inside_moment=True"):
        NovoGrad(groups_of(params)).load_state_dict(convert_state_dict(state, target="apex"))


def test_literal_nemo_state(golden):
    """NeMo's state after ten steps, written out, is what ours is after the same ten."""
    data = golden("novograd_float64.json")
    names, shapes = list(data["shapes"]), data["shapes"]
    (case,) = [c for c in data["cases"] if c["name"] == "amsgrad_wd_gavg"]

    def tensors(values: dict) -> dict[str, Tensor]:
        return {name: torch.tensor(values[name], dtype=torch.float64).reshape(shapes[name]) for name in names}

    final = case["final_state"]
    nemo = {
        "state": {
            i: {
                "step": 10,
                "exp_avg": tensors({n: final[n]["exp_avg"] for n in names})[name],
                "exp_avg_sq": torch.tensor(case["exp_avg_sq_after"][name][-1], dtype=torch.float64),
                "max_exp_avg_sq": torch.tensor(final[name]["max_exp_avg_sq"], dtype=torch.float64),
            }
            for i, name in enumerate(names)
        },
        "param_groups": [
            {"lr": 1e-3, "betas": (0.95, 0.98), "eps": 1e-8, "weight_decay": 0, "grad_averaging": False,
             "amsgrad": False, **case["hyper"], "params": [0, 1, 2]}
        ],
    }  # fmt: skip
    params = [torch.nn.Parameter(p) for p in tensors(data["params_init"]).values()]
    ours = NovoGrad(params, **case["hyper"])
    for step in range(10):
        for param, name in zip(params, names, strict=True):
            param.grad = torch.tensor(data["grads"][name][step], dtype=torch.float64).reshape(shapes[name])
        ours.step()
    resumed = [torch.nn.Parameter(p) for p in tensors({n: case["params_after"][n][-1] for n in names}).values()]
    other = NovoGrad(resumed)
    other.load_state_dict(convert_state_dict(nemo))
    assert other.state_dict()["state"].keys() == ours.state_dict()["state"].keys()
    for optimizer, ps in ((ours, params), (other, resumed)):
        for param in ps:
            param.grad = torch.ones_like(param)
        optimizer.step()
    torch.testing.assert_close(resumed, params, rtol=1e-12, atol=0)


def test_nemo_keys():
    state, _ = our_state(amsgrad=True)
    nemo = convert_state_dict(state, target="nemo", step=7)
    assert nemo["state"].keys() == {0, 1, 2}
    assert nemo["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert nemo["state"][0]["step"] == 7
    assert nemo["param_groups"][0].keys() == {
        "params", "lr", "betas", "eps", "weight_decay", "grad_averaging", "amsgrad"
    }  # fmt: skip


def test_schedulers_and_names_of_groups_are_handed_on():
    state, _ = our_state()
    state["param_groups"][0]["initial_lr"] = 0.5
    state["param_groups"][0]["param_names"] = ["a", "b"]
    for format_ in OTHERS:
        group = convert_state_dict(state, target=format_)["param_groups"][0]
        assert group["initial_lr"] == 0.5
        assert group["param_names"] == ["a", "b"]


class FormulaOfApex:
    """What apex's FusedNovoGrad stores, by its formulas (built with reg_inside_moment=True, bias_correction=False)."""

    def __init__(self, params, lr, betas, weight_decay, eps=1e-8):
        self.params, self.lr, self.betas, self.weight_decay, self.eps = params, lr, betas, weight_decay, eps
        self.exp_avgs = [torch.zeros_like(p) for p in params[:-1]]
        self.norms: list[Tensor] = []
        self.steps = 0

    @torch.no_grad()
    def step(self):
        beta1, beta2 = self.betas
        norms = [p.grad.float().norm() for p in self.params[:-1]]
        self.norms = self.norms or norms  # the first is blended with itself
        self.norms = [(beta2 * n**2 + (1 - beta2) * new**2).sqrt() for n, new in zip(self.norms, norms, strict=True)]
        self.steps += 1
        for param, m, norm in zip(self.params, self.exp_avgs, self.norms, strict=False):
            update = param.grad.float() / (norm + self.eps) + self.weight_decay * param.float()
            moment = beta1 * m.float() + (1 - beta1) * update
            m.copy_(moment)
            param.copy_(param.float() - self.lr * moment)

    def state_dict(self):
        norms = [
            torch.tensor([n for n, m in zip(self.norms, self.exp_avgs, strict=True) if m.dtype == dtype])
            for dtype in (torch.float16, torch.float32)
        ]
        group = {
            "lr": self.lr, "bias_correction": False, "betas": self.betas, "eps": self.eps,
            "weight_decay": self.weight_decay, "grad_averaging": True, "norm_type": 2, "init_zero": False,
            "step": self.steps, "exp_avg_sq": norms, "params": list(range(len(self.params))),
        }  # fmt: skip
        return {"state": {i: {"exp_avg": m} for i, m in enumerate(self.exp_avgs)}, "param_groups": [group]}


def test_apex_norms_are_dealt_out_by_dtype():
    """Layers of both dtypes, interleaved: apex keeps two lists."""
    params = make_params()
    params[1] = torch.nn.Parameter(params[1].detach().half())
    apex = FormulaOfApex(params, **OPTIONS)
    train(apex, params, 4)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours = NovoGrad(resumed)
    ours.load_state_dict(copy.deepcopy(convert_state_dict(apex.state_dict(), reg_inside_moment=True)))
    train(apex, params, 4, first=4)
    train(ours, resumed, 4, first=4)
    torch.testing.assert_close(resumed, params)
    back = convert_state_dict(ours.state_dict(), target="apex", step=8)
    for expected, actual in zip(
        apex.state_dict()["param_groups"][0]["exp_avg_sq"], back["param_groups"][0]["exp_avg_sq"], strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        pytest.param("apex", {"norm_type": 0}, "norm_type: 0 cannot be converted", id="apex inf norm"),
        pytest.param("apex", {"bias_correction": True}, "at step 3 it still matters", id="apex bias correction"),
        pytest.param("timm", {"decoupled_decay": True}, "decoupled_decay: True", id="timm decoupled"),
        pytest.param("pytorch_optimizer", {"weight_decouple": True}, "weight_decouple: True", id="decoupled"),
        pytest.param("pytorch_optimizer", {"adam_debias": True}, "adam_debias: True", id="debiased"),
    ],
)
def test_other_formulas_are_refused(source, change, message):
    state = convert_state_dict(our_state()[0], target=source, step=3)
    state["param_groups"][1].update(change)
    with pytest.raises(ConfigError, match=f"param_groups.1.*{message}"):
        convert_state_dict(state, source, reg_inside_moment=True)


@pytest.mark.parametrize("inside", [None, False])
def test_apex_moments_of_raw_gradients_are_refused(inside):
    state = convert_state_dict(our_state()[0], target="apex")
    with pytest.raises(ConfigError, match="moments of raw gradients"):
        convert_state_dict(state, reg_inside_moment=inside)


def test_apex_bias_correction_that_ended_is_accepted():
    state = convert_state_dict(our_state()[0], target="apex", step=1000)
    for group in state["param_groups"]:
        group["bias_correction"] = True
    convert_state_dict(state, reg_inside_moment=True)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("pytorch_optimizer", {"amsgrad": True}),
        ("apex", {"amsgrad": True}),
        ("timm", {"luc": True}),
        ("nemo", {"maximize": True}),
    ],
    ids=str,
)
def test_options_that_the_target_lacks_are_refused(target, options):
    state, _ = our_state(**options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        convert_state_dict(state, target=target)


def test_unknown_format_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown format 'nemmo'; did you mean 'nemo'\? Allowed: apex"):
        convert_state_dict(our_state()[0], target="nemmo")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_another_optimizer_is_refused(optimizer):
    params = make_params()
    adam = optimizer(params, lr=0.1)
    train(adam, params, 1)
    with pytest.raises(ConfigError, match="not the state of a known NovoGrad"):
        convert_state_dict(adam.state_dict())


def test_norms_that_do_not_match_the_layers_are_refused():
    state = convert_state_dict(our_state()[0], target="apex")
    state["param_groups"][0]["exp_avg_sq"][1] = torch.ones(7)
    with pytest.raises(ConfigError, match=r"\[0, 7\] norms of float16 and float32 layers"):
        convert_state_dict(state, reg_inside_moment=True)


def lightning_checkpoint(optimizer_state) -> dict:
    adam = torch.optim.AdamW(make_params())
    return {
        "global_step": 3,
        "optimizer_states": [adam.state_dict(), optimizer_state],
        "state_dict": {"weight": torch.ones(2)},
        "hyper_parameters": {"cfg": OmegaConf.create({"optim": {"name": "novograd", "betas": [0.9, 0.5]}})},
    }


def test_lightning_checkpoint():
    state, _ = our_state()
    checkpoint = lightning_checkpoint(state)
    converted = convert_checkpoint(checkpoint, target="nemo")
    assert [detect_format(s) for s in converted["optimizer_states"][1:]] == ["nemo"]
    assert converted["optimizer_states"][1]["state"][0]["step"] == 3
    assert converted["optimizer_states"][0] is checkpoint["optimizer_states"][0]
    assert converted["state_dict"] is checkpoint["state_dict"]
    assert detect_format(checkpoint["optimizer_states"][1]) == "ours", "the input was changed"
    assert detect_format(convert_checkpoint({"optimizer": state, "epoch": 1}, target="timm")["optimizer"]) == "timm"


def test_checkpoint_without_novograd_is_refused():
    checkpoint = lightning_checkpoint(torch.optim.AdamW(make_params()).state_dict())
    with pytest.raises(ConfigError, match="none of the 2 entries"):
        convert_checkpoint(checkpoint)


def test_command(tmp_path):
    state, params = our_state()
    torch.save(lightning_checkpoint(convert_state_dict(state, target="nemo")), tmp_path / "nemo.ckpt")
    run = subprocess.run(
        [sys.executable, "-m", "lightning_novograd", "convert-checkpoint", "nemo.ckpt", "ours.ckpt", "--from", "nemo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "ours.ckpt\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nemo.ckpt", "ours.ckpt"]
    with torch.serialization.safe_globals(_CONTAINERS):
        converted = torch.load(tmp_path / "ours.ckpt", weights_only=True)
    assert converted["hyper_parameters"]["cfg"].optim.betas == [0.9, 0.5]
    NovoGrad(groups_of(params)).load_state_dict(converted["optimizer_states"][1])


class Payload:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"optimizer": Payload()}, "without running code of its own", id="code"),
        pytest.param([1, 2], "found list", id="no dict"),
        pytest.param({"weight": torch.ones(1)}, "found keys: weight", id="no optimizer"),
        pytest.param(None, "no such file", id="missing"),
    ],
)
def test_files_that_are_refused(content, message, tmp_path, capsys):
    if content is not None:
        torch.save(content, tmp_path / "in.ckpt")
    with pytest.raises(ConfigError, match=message):
        convert_file(tmp_path / "in.ckpt", tmp_path / "out.ckpt", None, "ours")
    assert not (tmp_path / "out.ckpt").exists()
    assert "code of the file ran" not in capsys.readouterr().out


def test_output_is_not_overwritten(tmp_path):
    (tmp_path / "out.ckpt").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        convert_file(tmp_path / "in.ckpt", tmp_path / "out.ckpt", None, "ours")


def pytorch_optimizer_novograd(params, **options):
    module = pytest.importorskip("pytorch_optimizer", reason="needs pytorch-optimizer (extra bench)")
    return module.NovoGrad(params, **options)


def timm_novograd(params, **options):
    module = pytest.importorskip("timm.optim.nvnovograd", reason="needs timm")
    return module.NvNovoGrad(params, **options)


def nemo_novograd(params, **options):
    module = pytest.importorskip("nemo.core.optim.novograd", reason="needs nemo_toolkit")
    return module.Novograd(params, **options)


@pytest.mark.parametrize(
    ("peer", "format_"),
    [
        pytest.param(pytorch_optimizer_novograd, "pytorch_optimizer", id="pytorch_optimizer"),
        pytest.param(timm_novograd, "timm", id="timm"),
        pytest.param(nemo_novograd, "nemo", id="nemo"),
    ],
)
@pytest.mark.parametrize("direction", ["to ours", "to theirs"])
def test_real_peers_go_on(peer, format_, direction):
    """Half of a run in one optimizer, the other half in the other, is the whole run in either."""
    params = make_params()
    whole = peer(groups_of(params), **OPTIONS)
    first, last = (whole, NovoGrad) if direction == "to ours" else (NovoGrad(groups_of(params), **OPTIONS), peer)
    train(first, params, 3)
    assert detect_format(first.state_dict()) == (format_ if direction == "to ours" else "ours")
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    second = last(groups_of(resumed), **OPTIONS)
    target = "ours" if direction == "to ours" else format_
    second.load_state_dict(copy.deepcopy(convert_state_dict(first.state_dict(), target=target, step=3)))
    train(first, params, 3, first=3)
    train(second, resumed, 3, first=3)
    torch.testing.assert_close(resumed, params, rtol=1e-6, atol=1e-7)


def test_luc_for_nemo_is_said_to_be_left_out():
    optimizer = NovoGrad([torch.nn.Parameter(torch.ones(2))], luc=True, luc_trust=0.01)
    with pytest.warns(UserWarning, match=r"no place for luc: .*luc_trust=0\.01"):
        convert_state_dict(optimizer.state_dict(), "ours", "nemo")
