"""The acoustic model equals NeMo's: log-probs, state-dict keys, parameter counts. A bad config is named."""

import copy

import numpy as np
import pytest
import torch
import yaml
from conftest import GOLDEN, ROOT
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig
from lightning_novograd.recipes.asr.weights.nemo import load_nemo

TINY = ["quartznet_tiny", "jasper_tiny_dr"]
PARAMETERS = {
    "quartznet_small": 211_165,
    "quartznet_demo": 211_165,
    "quartznet_5x5": 6_713_181,
    "quartznet_10x5": 12_818_781,
    "quartznet_15x5": 18_924_381,
    "jasper_10x5dr": 332_632_349,
}
SMALL = {
    "labels": [" ", "a", "b"],
    "preprocessor": {"features": 16},
    "encoder": {
        "feat_in": 16,
        "jasper": [
            {"filters": 8, "kernel": 11, "stride": 2, "residual": False, "separable": True},
            {"filters": 8, "kernel": 5, "repeat": 2, "residual": True, "separable": True},
            {"filters": 12, "kernel": 1, "residual": False},
        ],
    },
    "decoder": {"feat_in": 12, "num_classes": 3},
}


def with_value(path, value):
    """SMALL with one key set; a number in `path` is an index."""
    cfg = copy.deepcopy(SMALL)
    node = cfg
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name)] if name.isdigit() else node.setdefault(name, {})
    node[int(last) if last.isdigit() else last] = value
    return cfg


def layout(model):
    return [
        [name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.state_dict().items()
    ]


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module", params=TINY)
def tiny(request, golden):
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "models" / f"{request.param}.npz").items()}
    about = golden("models/models.json")["models"][request.param]
    return load_nemo(GOLDEN / "models" / f"{request.param}.nemo"), arrays, about


@torch.no_grad()
def test_log_probs_of_features_equal_nemos(tiny):
    model, arrays, _ = tiny
    encoded, _ = model.encoder(arrays["features"], arrays["feature_lengths"])
    log_probs, lens = model.encode_features(arrays["features"], arrays["feature_lengths"])
    torch.testing.assert_close(encoded, arrays["encoder_output"], rtol=0, atol=1e-4)
    torch.testing.assert_close(log_probs, arrays["log_probs"], rtol=0, atol=1e-4)
    assert torch.equal(lens, arrays["encoded_lengths"])


@torch.no_grad()
def test_log_probs_of_waves_equal_nemos(tiny):
    model, arrays, _ = tiny
    log_probs, lens = model(arrays["wave_int16"].float() / 32768, arrays["wave_lengths"])
    torch.testing.assert_close(log_probs, arrays["wave_log_probs"], rtol=0, atol=1e-4)
    assert torch.equal(log_probs.argmax(-1), arrays["wave_greedy"])
    assert torch.equal(lens, arrays["wave_encoded_lengths"])
    assert torch.equal(model.output_lengths(arrays["wave_lengths"]), lens)


@torch.no_grad()
def test_what_lies_in_the_padding_of_the_features_does_not_matter(tiny):
    model, arrays, _ = tiny
    beyond = torch.arange(arrays["features"].shape[2]) >= arrays["feature_lengths"][:, None]
    dirty = arrays["features"].masked_fill(beyond[:, None], 3.0)
    log_probs, _ = model.encode_features(dirty, arrays["feature_lengths"])
    torch.testing.assert_close(log_probs, arrays["log_probs"], rtol=0, atol=1e-4)


def test_tiny_state_dicts_have_nemos_layout(tiny):
    model, _, about = tiny
    assert layout(model) == about["state_dict"]
    assert count(model) == about["parameters"]
    assert model.alphabet.labels == about["labels"]
    assert model.alphabet.blank == about["blank_id"]


@pytest.mark.parametrize("name", ["quartznet_15x5", "jasper_10x5dr"])
def test_published_models_have_nemos_layout_from_nemos_blocks_and_from_ours(name, golden):
    reference = golden(f"models/state_dict_{name}.json")
    [entries] = [value for value in reference.values() if isinstance(value, list) and len(value) > 100]
    labels = golden("models/models.json")["models"]["quartznet_tiny"]["labels"]
    ours = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    assert ours["labels"] == labels
    for cfg in ({"labels": labels, "encoder": {"jasper": reference["jasper"]}}, ours):
        with torch.device("meta"):
            model = JasperCTC.from_config(cfg)
        assert layout(model) == [entry[:3] for entry in entries]
        assert {name for name, _ in model.named_parameters()} == {e[0] for e in entries if e[3] == "parameter"}
        assert count(model) == reference["parameters"]
        assert count(model.encoder) == reference["encoder_parameters"]
        if name == "jasper_10x5dr":
            dropouts = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
            assert sorted(set(dropouts)) == [0.2, 0.3, 0.4]


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "conf" / "model").glob("*.yaml")))
def test_model_configs_have_the_published_sizes(name):
    with torch.device("meta"):
        model = JasperCTC.from_config(OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml"))
    assert count(model) == PARAMETERS[name]


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = JasperCTC.from_config(SMALL)
    log_probs, _ = model(torch.randn(2, 8000), torch.tensor([8000, 5000]))
    (log_probs * torch.randn_like(log_probs)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.count_nonzero() > 0, name


def test_the_forward_pass_reads_no_value_of_a_tensor():
    augment = {"freq_masks": 2, "time_masks": 2, "time_width": 0.2, "rect_masks": 2}
    with FakeTensorMode():  # has shapes and no values: reading one raises
        model = JasperCTC.from_config(SMALL | {"spec_augment": augment})
        log_probs, _ = model(torch.zeros(2, 16000), torch.tensor([16000, 0]))
        log_probs.sum().backward()
    assert log_probs.shape == (2, 56, 4)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 1000])
def test_no_wave_is_too_short_to_compute(samples):
    model = JasperCTC.from_config(SMALL).eval()
    log_probs, lens = model(torch.zeros(2, samples), torch.tensor([samples, 0]))
    assert torch.isfinite(log_probs).all()
    assert lens.tolist() == [-(-(samples // 160) // 2), 0] == model.output_lengths(torch.tensor([samples, 0])).tolist()


def test_spec_augment_is_applied_in_training_only():
    wave, lens = torch.randn(1, 8000), torch.tensor([8000])
    plain = JasperCTC.from_config(SMALL).eval()
    augmented = JasperCTC.from_config(SMALL | {"spec_augment": {"freq_masks": 2}}).eval()
    augmented.load_state_dict(plain.state_dict())
    assert torch.equal(augmented(wave, lens)[0], plain(wave, lens)[0])
    augmented.spec_augmentation.train()
    torch.manual_seed(0)
    assert not torch.equal(augmented(wave, lens)[0], plain(wave, lens)[0])


def test_log_probs_are_single_precision_under_autocast():
    model = JasperCTC.from_config(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, _ = model(torch.randn(1, 8000), torch.tensor([8000]))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1, log_probs.shape[1]))


def test_convolutions_start_from_xavier_uniform_as_in_nemo():
    torch.manual_seed(0)
    model = JasperCTC.from_config(with_value("encoder.jasper.0.filters", 400))
    weight = model.encoder.encoder[0].mconv[1].conv.weight  # 1x1, 16 -> 400
    bound = (6 / (16 + 400)) ** 0.5
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.std(), torch.tensor(bound / 3**0.5), rtol=0.02, atol=0)
    depthwise = model.encoder.encoder[0].mconv[0].conv.weight  # fan-in 11, fan-out 16*11
    assert depthwise.abs().max() <= (6 / (11 + 16 * 11)) ** 0.5
    assert model.decoder.decoder_layers[0].weight.abs().max() <= (6 / (12 + 4)) ** 0.5


def test_init_mode_null_leaves_torchs_initialization():
    torch.manual_seed(0)
    model = JasperCTC.from_config(with_value("encoder.init_mode", None))
    weight = model.encoder.encoder[2].mconv[0].conv.weight  # 1x1, 8 -> 12: torch's bound is 1/sqrt(8)
    assert weight.abs().max() <= 8**-0.5 < (6 / (8 + 12)) ** 0.5
    assert weight.abs().max() > 0.9 * 8**-0.5


def test_copies_writes_a_block_several_times():
    cfg = with_value("encoder.jasper.1.copies", 3)
    written_out = copy.deepcopy(SMALL)
    written_out["encoder"]["jasper"][1:2] = 3 * [SMALL["encoder"]["jasper"][1]]
    assert layout(JasperCTC.from_config(cfg)) == layout(JasperCTC.from_config(written_out))
    assert len(JasperCTC.from_config(cfg).encoder.encoder) == 5


def test_a_config_may_be_omegaconfs_with_interpolations():
    cfg = OmegaConf.create({"model": with_value("encoder.feat_in", "${model.preprocessor.features}")})
    assert layout(JasperCTC.from_config(cfg.model)) == layout(JasperCTC.from_config(SMALL))


def test_decoder_and_preprocessor_follow_from_the_rest():
    cfg = {"labels": SMALL["labels"], "encoder": {"jasper": SMALL["encoder"]["jasper"]}}
    config = ModelConfig.read(cfg)
    assert config.layers[0].in_channels == config.preprocessor.features == 64
    assert JasperCTC(config).decoder.decoder_layers[0].weight.shape == (4, 12, 1)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        *[("decoder.num_classes", value) for value in (None, 0, -1, 3)],
        *[("decoder.vocabulary", value) for value in (None, [" ", "a", "b"], (" ", "a", "b"))],
        ("decoder.feat_in", None),
        ("encoder.feat_in", None),
        ("spec_augment", None),
        ("spec_augment", {}),
        ("sample_rate", 16000),
        ("labels", (" ", "a", "b")),
    ],
)
def test_what_may_be_said_once_more_or_left_open(where, value):
    assert layout(JasperCTC.from_config(with_value(where, value))) == layout(JasperCTC.from_config(SMALL))


@pytest.mark.parametrize("path", ["", "m", "x.nemo:"])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("decoder.feat_in", 8),
        ("decoder.x", 1),
        ("preprocessor.x", 1),
        ("spec_augment.x", 1),
        ("encoder.x", 1),
        ("encoder.jasper.0.groups", 3),
        ("encoder.feat_in", 8),
        ("sample_rate", 8000),
        ("labels", 3),
        ("labels", []),
        ("x", 1),
    ],
)
def test_errors_begin_where_the_model_stands(path, where, value):
    with pytest.raises(ConfigError) as error:
        JasperCTC.from_config(with_value(where, value), path)
    key = where.replace(".0", "[0]")
    assert error.value.path == (f"m.{key}" if path == "m" else path + key)


def test_the_residual_mode_of_a_block_holds_for_those_behind_it():
    strided = {"filters": 8, "kernel": 5, "stride": 2, "residual": True}
    cfg = with_value("encoder.jasper.1", strided | {"residual_mode": "stride_add"})
    cfg["encoder"]["jasper"].insert(2, strided)
    assert [layer.residual_stride for layer in ModelConfig.read(cfg).layers] == [1, 2, 2, 1]
    model = JasperCTC.from_config(cfg)
    lens = model.output_lengths(torch.tensor([16000]))
    assert model(torch.randn(1, 16000), torch.tensor([16000]))[1].tolist() == lens.tolist() == [13]


def test_dense_branches_start_at_every_dense_block_before():
    dense = {"filters": 8, "kernel": 5, "residual": True, "residual_dense": True}
    cfg = with_value("encoder.jasper.1", dense | {"copies": 2})
    cfg["encoder"]["jasper"].insert(2, dense | {"filters": 6})
    assert [layer.residual_channels for layer in ModelConfig.read(cfg).layers] == [(), (8,), (8, 8), (8, 8, 8), ()]
    assert JasperCTC.from_config(cfg)(torch.randn(1, 8000), torch.tensor([8000]))[0].shape[2] == 4


DENSE = {"filters": 8, "kernel": 5, "residual": True, "residual_dense": True}
PLAIN = {"filters": 8, "kernel": 5, "residual": False}
BAD = [
    ("lables", ["a"], "model.lables", "unknown key; did you mean 'labels'?"),
    ("labels", "abc", "model.labels", "must be a list of characters, not 'abc'"),
    ("labels", [" ", "a", "a"], "model.labels", "'a' more than once"),
    ("labels", [" ", "a", True], "model.labels", "True is not a single character"),
    ("sample_rate", 8000, "model.sample_rate", "8000 is not preprocessor.sample_rate (16000)"),
    ("preprocessor.featurs", 64, "model.preprocessor.featurs", "did you mean 'features'?"),
    ("preprocessor", None, "model.preprocessor", "must be a mapping, not None"),
    ("spec_augment.time_mask", 2, "model.spec_augment.time_mask", "did you mean 'time_masks'?"),
    ("encoder.jaspr", [], "model.encoder.jaspr", "did you mean 'jasper'?"),
    ("encoder.jasper", [], "model.encoder.jasper", "must be a list of blocks, not []"),
    ("encoder.jasper.1", 3, "model.encoder.jasper[1]", "must be a mapping, not 3"),
    ("encoder.jasper.1.kernal", 5, "model.encoder.jasper[1].kernal", "did you mean 'kernel'?"),
    ("encoder.jasper.1.filters", -1, "model.encoder.jasper[1].filters", "must be at least 1"),
    ("encoder.activation", "rellu", "model.encoder.activation", "did you mean 'relu'?"),
    ("encoder.init_mode", "xavier", "model.encoder.init_mode", "did you mean 'xavier_normal'?"),
    ("encoder.normalization_mode", "group", "model.encoder.normalization_mode", "only 'batch'"),
    ("encoder.feat_in", 64, "model.encoder.feat_in", "64 channels, but preprocessor.features gives 16"),
    ("decoder.feat_in", 8, "model.decoder.feat_in", "8 channels, but encoder.jasper[2].filters gives 12"),
    ("decoder.num_classes", 4, "model.decoder.num_classes", "4 classes, but there are 3 labels"),
    ("decoder.vocabulary", ["a", " ", "b"], "model.decoder.vocabulary", "differs from labels"),
    ("encoder.jasper.1.stride", 2, "model.encoder.jasper[1].residual_mode", "strides by 4 and its residual"),
    (
        "encoder.jasper.1",
        DENSE | {"residual_dense": False, "stride": 2, "repeat": 2, "residual_mode": "stride_add"},
        "model.encoder.jasper[1].stride",
        "the 2 sub-blocks stride by 4 together and the residual branch by 2; set stride_last: true",
    ),
    ("encoder.jasper", [DENSE, PLAIN, DENSE], "model.encoder.jasper[2].residual_dense", "must be neighbours"),
    (
        "encoder.jasper",
        [DENSE, PLAIN | {"residual": True}],
        "model.encoder.jasper[1].residual",
        "must set residual_dense: true too",
    ),
    ("encoder.jasper.0.groups", 3, "model.encoder.jasper[0].groups", "3 do not divide the 8 filters"),
    ("encoder.jasper.0.heads", 3, "model.encoder.jasper[0].heads", "3 do not divide 16 channels"),
]


@pytest.mark.parametrize(("where", "value", "path", "problem"), BAD, ids=[f"{b[0]}={b[1]}"[:50] for b in BAD])
def test_a_bad_key_is_named(where, value, path, problem):
    with pytest.raises(ConfigError) as error:
        JasperCTC.from_config(with_value(where, value))
    assert error.value.path == path
    assert problem in error.value.problem


@pytest.mark.parametrize(("missing", "path"), [("labels", "model.labels"), ("encoder", "model.encoder")])
def test_a_missing_section_is_named(missing, path):
    with pytest.raises(ConfigError) as error:
        JasperCTC.from_config({name: value for name, value in SMALL.items() if name != missing})
    assert error.value.path == path


def test_heads_need_masked_convolutions():
    cfg = with_value("encoder.jasper.0.heads", 4)
    cfg["encoder"]["conv_mask"] = False
    with pytest.raises(ConfigError, match=r"jasper\[0\]\.heads: need encoder\.conv_mask: true"):
        JasperCTC.from_config(cfg)


def test_an_unresolvable_interpolation_is_a_config_error():
    cfg = OmegaConf.create({"model": with_value("encoder.feat_in", "${model.nothing}")})
    with pytest.raises(ConfigError, match="nothing"):
        JasperCTC.from_config(cfg.model)
