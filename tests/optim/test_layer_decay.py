"""Learning rates that fall from layer to layer."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils.parametrizations import weight_norm

from lightning_novograd import OptimMixin
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.layer_decay import LayerDecay, layer_names
from lightning_novograd.optim.param_groups import ParamGroupRule, build_param_groups


class Transformer(nn.Module):
    """An embedding, blocks with lists of their own inside, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})
            for _ in range(3)
        )
        self.head = nn.Linear(4, 5)

    def layer_of(self, name: str) -> int:
        """As models tell their own depth."""
        first, second = name.split(".")[:2]
        return int(second) + 1 if first == "blocks" else 0 if first == "embed" else 4

    def coarse(self, name: str) -> int:
        return 1 if name.startswith("head") else 0

    def negative(self, name: str) -> int:
        return -1

    def text(self, name: str) -> str:
        return name

    def fails(self, name: str) -> int:
        raise RuntimeError("no such layer")

    @staticmethod
    def of_class(name: str) -> int:
        return 0

    @property
    def looked_at(self) -> int:
        raise AssertionError("a config had a property evaluated")

    def _private(self, name: str) -> int:
        return 0

    def forward(self, name: str) -> int:
        return 0


class Deeper(Transformer):
    """A class that defines no method itself."""


class Lit(OptimMixin, pl.LightningModule):
    """A model that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def training_step(self, batch: str) -> int:
        return 0

    def configure_optimizers(self) -> int:
        return 0


class WithParameters(nn.Module):
    """Modules and parameters by name, those of the module itself after them."""

    def __init__(self, *own: str, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        for name in own:
            self.register_parameter(name, nn.Parameter(torch.ones(2)))


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def block() -> nn.Module:
    return WithParameters("gamma", norm=nn.LayerNorm(2), mlp=nn.Sequential(linear(), linear()))


def blocks(n: int) -> nn.ModuleList:
    return nn.ModuleList(block() for _ in range(n))


def conv(channels: int = 2) -> nn.Module:
    return nn.Conv1d(2, channels, 3)


def residual() -> nn.Module:
    return WithParameters(conv1=conv(), bn1=nn.BatchNorm1d(2), downsample=nn.Sequential(conv(), nn.BatchNorm1d(2)))


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return utils.weight_norm(module)


def bert() -> nn.Module:
    embeddings = WithParameters(
        word_embeddings=nn.Embedding(3, 2),
        position_embeddings=nn.Embedding(3, 2),
        token_type_embeddings=nn.Embedding(2, 2),
        LayerNorm=nn.LayerNorm(2),
    )
    return WithParameters(
        embeddings=embeddings, encoder=WithParameters(layer=blocks(2)), pooler=WithParameters(dense=linear())
    )


def vit() -> nn.Module:
    return WithParameters(
        *("cls_token", "pos_embed"), patch_embed=WithParameters(proj=conv()), blocks=blocks(2), norm=nn.LayerNorm(2)
    )


# A model, and the parameters of each layer from the input to the output, by what their names begin with
MODELS = {
    "ViT": (
        WithParameters("mask_token", "logit_scale", vit=vit(), head=linear()),
        [
            ["mask_token", "vit.cls_token", "vit.pos_embed", "vit.patch_embed"],
            *(["vit.blocks.0"], ["vit.blocks.1"]),
            ["vit.norm", "head", "logit_scale"],
        ],
    ),
    "BERT": (
        WithParameters(bert=bert(), classifier=linear()),
        [["bert.embeddings"], ["bert.encoder.layer.0"], ["bert.encoder.layer.1"], ["bert.pooler", "classifier"]],
    ),
    "BERT of plain layers": (
        WithParameters(
            embeddings=WithParameters(word=nn.Embedding(3, 2), norm=nn.LayerNorm(2)),
            layer=nn.ModuleList([linear(), linear()]),
            head=WithParameters(dense=linear(), out=linear()),
        ),
        [["embeddings"], ["layer.0"], ["layer.1"], ["head"]],
    ),
    "T5": (
        WithParameters(
            shared=nn.Embedding(3, 2),
            encoder=WithParameters(block=blocks(2), final_layer_norm=nn.LayerNorm(2)),
            decoder=WithParameters("position_bias", block=blocks(1), final_layer_norm=nn.LayerNorm(2)),
            lm_head=linear(),
        ),
        [
            *(["shared"], ["encoder.block.0"], ["encoder.block.1"]),
            ["encoder.final_layer_norm", "decoder.position_bias"],
            *(["decoder.block.0"], ["decoder.final_layer_norm", "lm_head"]),
        ],
    ),
    "ResNet": (
        WithParameters(
            conv1=conv(),
            bn1=nn.BatchNorm1d(2),
            layer1=nn.Sequential(residual(), residual()),
            layer2=nn.Sequential(residual()),
            fc=linear(),
        ),
        [["conv1", "bn1"], ["layer1.0"], ["layer1.1"], ["layer2.0"], ["fc"]],
    ),
    "ResNet with a deep stem": (
        WithParameters(stem=nn.Sequential(conv(), nn.BatchNorm1d(2)), layer1=nn.Sequential(residual()), fc=linear()),
        [["stem"], ["layer1.0"], ["fc"]],
    ),
    "stages in a list": (
        WithParameters(stem=conv(), stages=nn.Sequential(nn.Sequential(residual()), nn.Sequential(residual()))),
        [["stem"], ["stages.0.0"], ["stages.1.0"]],
    ),
    "QuartzNet": (
        WithParameters(
            encoder=WithParameters(encoder=nn.Sequential(residual(), residual(), residual())),
            decoder=WithParameters(decoder_layers=nn.Sequential(conv())),
        ),
        [["encoder.encoder.0"], ["encoder.encoder.1"], ["encoder.encoder.2"], ["decoder"]],
    ),
    "blocks among plain layers": (
        nn.Sequential(conv(), nn.BatchNorm1d(2), nn.ReLU(), residual(), residual(), nn.Flatten(), linear()),
        [["0", "1"], ["3"], ["4"], ["6"]],
    ),
    "CNN in a list": (nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), linear()), [["0"], ["2"], ["4"]]),
    "CNN by name": (
        WithParameters("pos_embed", "temperature", conv1=conv(), conv2=conv(), fc=linear()),
        [["pos_embed", "conv1"], ["conv2"], ["fc", "temperature"]],
    ),
    "a loss before the model": (
        WithParameters(loss=linear(), net=WithParameters(embed=linear(), blocks=blocks(1), head=linear())),
        [["loss", "net.embed"], ["net.blocks.0"], ["net.head"]],
    ),
    "weight_norm": (
        WithParameters("scale", conv1=weight_norm(conv()), conv2=weight_norm(conv())),
        [["conv1"], ["conv2", "scale"]],
    ),
    "weight_norm in a list": (
        WithParameters("scale", convs=nn.ModuleList([weight_norm(conv()), weight_norm(conv())]), head=linear()),
        [["convs.0"], ["convs.1"], ["head", "scale"]],
    ),
    "weight_norm beside blocks": (
        WithParameters(stem=nn.Sequential(weight_norm(conv()), conv()), blocks=blocks(2)),
        [["stem"], ["blocks.0"], ["blocks.1"]],
    ),
    "old weight_norm": (
        WithParameters(conv1=old_weight_norm(conv()), conv2=old_weight_norm(conv())),
        [["conv1"], ["conv2"]],
    ),
    "one module": (weight_norm(linear()), [[""]]),
}


def names_of(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (Transformer(), ["embed", "blocks.0", "blocks.1", "blocks.2", "head"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"]),
        (
            nn.ModuleDict({"layer1": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "fc": nn.Linear(2, 2)}),
            ["layer1.0", "layer1.1", "fc"],
        ),
        (
            nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))),
            ["0.0", "0.1", "1.0"],
        ),
        (nn.Linear(2, 2), [""]),
    ],
    ids=["transformer", "sequential", "stages by name", "stages in a list", "one layer"],
)
def test_layers_are_elements_of_the_outermost_list(module, layers):
    assert list(dict.fromkeys(layer_names(module, names_of(module)).values())) == layers


@pytest.mark.parametrize(("model", "layers"), MODELS.values(), ids=MODELS)
def test_layers_of_common_models(model, layers):
    scales = LayerDecay(decay=0.5).scales(model, names_of(model))
    expected = {
        name: 0.5 ** (len(layers) - 1 - index)
        for index, beginnings in enumerate(layers)
        for name in scales
        if any(not start or name == start or name.startswith(f"{start}.") for start in beginnings)
    }
    assert scales == expected


@pytest.mark.parametrize(
    ("layers", "scales"),
    [
        ("auto", [0.0625, 0.125, 0.25, 0.5, 1.0]),
        ("layer_of", [0.0625, 0.125, 0.25, 0.5, 1.0]),
        ("coarse", [0.5, 0.5, 0.5, 0.5, 1.0]),
        (("embed.*", "blocks.[01].*", "blocks.2.*"), [0.125, 0.25, 0.25, 0.5, 1.0]),
    ],
    ids=["auto", "method", "coarse method", "globs"],
)
def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(layers, scales):
    model = Transformer()
    found = LayerDecay(decay=0.5, layers=layers).scales(model, names_of(model))
    order = ["embed.weight", *(f"blocks.{i}.norm.weight" for i in range(3)), "head.bias"]
    assert [found[name] for name in order] == pytest.approx(scales)
    assert found["blocks.1.mlp.0.weight"] == found["blocks.1.norm.bias"]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (("embed.*", "block.0.*"), "'block.0.*' matches no parameter"),
        ("depth", "Transformer has no method 'depth'"),
        ("negative", "Transformer.negative('embed.weight') returned -1"),
        ("text", "returned 'embed.weight'; expected the layer's index"),
        ("fails", "Transformer.fails('embed.weight') raised RuntimeError: no such layer"),
        ("layer", "Transformer has no method 'layer' of its own; did you mean 'layer_of'? Allowed: auto, a list"),
    ],
)
def test_layers_that_cannot_be_found_are_an_error(layers, problem):
    model = Transformer()
    with pytest.raises(ConfigError) as caught:
        LayerDecay(decay=0.5, layers=layers).scales(model, names_of(model))
    assert caught.value.path == "optim.layer_decay.layers"
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("module", "method"),
    [
        *((nn.Linear(2, 2), name) for name in dir(nn.Linear)),
        *((Transformer(), name) for name in ("forward", "looked_at", "_private", "blocks", "embed", "register_buffer")),
        *((Lit(), name) for name in dir(Lit)),
        *((Deeper(), name) for name in ("layer_of", "of_class", "forward", "__init__")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_config_has_nothing_called_but_methods_of_the_models_own_class(module, method):
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    with pytest.raises(ConfigError, match=f"has no method {method!r} of its own"):
        LayerDecay(decay=0.5, layers=method).scales(module, names_of(module))
    assert {name: dict(vars(part)) for name, part in module.named_modules()} == before
    assert names_of(module)


def test_a_method_is_found_in_the_class_that_torch_derived_its_own_from():
    model = torch.compile(Transformer(), backend="eager")
    model._orig_mod.__class__ = type("FSDPTransformer", (Transformer,), {"__module__": "torch.distributed.fsdp"})
    names = [name.removeprefix("_orig_mod.") for name in names_of(model)]
    scales = LayerDecay(decay=0.5, layers="layer_of").scales(model, names)
    assert (scales["embed.weight"], scales["head.bias"]) == (0.0625, 1.0)
    assert set(LayerDecay(decay=0.5, layers="of_class").scales(model, names).values()) == {1.0}


def test_groups_are_split_by_layer_and_by_decay():
    groups = build_param_groups(Transformer(), no_decay=["norm"], layer_decay=LayerDecay(decay=0.5))
    assert [(g.name, len(g.params)) for g in groups] == [
        ("default", 2),
        ("default, lr x 0.5", 4),
        ("default, lr x 0.5, no decay", 2),
        ("default, lr x 0.25", 4),
        ("default, lr x 0.25, no decay", 2),
        ("default, lr x 0.125", 4),
        ("default, lr x 0.125, no decay", 2),
        ("default, lr x 0.0625", 1),
    ]
    rates = [group.options({"lr": 0.8, "weight_decay": 0.1}).get("lr", 0.8) for group in groups]
    assert rates == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.05])


def test_a_rules_factor_multiplies_and_its_lr_stays():
    rules = [
        ParamGroupRule(match=("blocks.2.*",), lr_mult=0.5),
        ParamGroupRule(match=("embed.*",), options={"lr": 0.3}),
    ]
    groups = build_param_groups(Transformer(), rules, layer_decay=LayerDecay(decay=0.5))
    rates = {g.name: g.options({"lr": 0.8, "weight_decay": 0.0}).get("lr") for g in groups}
    assert rates["blocks.2.*, lr x 0.5"] == pytest.approx(0.2)
    assert rates["embed.*"] == 0.3


def test_a_shared_parameter_has_the_layer_of_its_first_name():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "middle": nn.Linear(2, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    tied, middle = sorted(build_param_groups(model, layer_decay=LayerDecay(decay=0.5)), key=lambda g: g.lr_scale)
    assert (tied.lr_scale, len(tied.params), middle.lr_scale) == (0.5, 1, 1.0)


def test_a_decay_of_one_changes_nothing():
    model = Transformer()
    (group,) = build_param_groups(model, layer_decay=LayerDecay(decay=1.0))
    assert group.options({"lr": 0.1}).keys() == {"params"}
    assert torch.equal(group.params[0], model.embed.weight)


@pytest.mark.parametrize("decay", [0.999, 1 - 1e-9, 1 - 2**-53])
def test_groups_of_many_layers_have_names_of_their_own(decay):
    model = nn.Sequential(*(linear() for _ in range(60)))
    groups = build_param_groups(model, no_decay=["bias"], layer_decay=LayerDecay(decay=decay))
    assert len({group.name for group in groups}) == len(groups) == 120
    assert [group.name for group in groups][:2] == ["default", "default, no decay"]
