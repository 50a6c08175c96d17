"""Fine-tuning: which weights a new model takes, and which models it refuses."""

import copy
import logging

import pytest
import torch
from conftest import GOLDEN

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.weights.fine_tuning import start_from
from lightning_novograd.recipes.asr.weights.nemo import NemoArchive, load_nemo

BLOCK = {"filters": 8, "kernel": 5, "separable": True, "residual": True}
CONFIG = {
    "labels": [" ", "a", "b"],
    "preprocessor": {"features": 8},
    "spec_augment": {},
    "encoder": {"jasper": [{**BLOCK, "stride": 2, "residual": False}, {**BLOCK, "copies": 2}]},
}


def model(**changes) -> JasperCTC:
    """A model; keys are paths with `__` for the dots."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = config
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    return JasperCTC.from_config(config)


def equal(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.fixture
def trained() -> JasperCTC:
    trained = model()
    with torch.no_grad():
        for tensor in trained.encoder.state_dict().values():
            tensor += 1  # BatchNorm's statistics and counts too
    return trained


def test_the_same_alphabet_takes_all_weights(trained, caplog):
    new = model()
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        start_from(new, trained, "run")
    assert equal(new, trained)
    assert caplog.messages == ["all weights are those of run"]


@pytest.mark.parametrize("labels", [[" ", "a", "b", "ä"], [" ", "b", "a"]], ids=["more", "in another order"])
def test_another_alphabet_begins_with_a_new_decoder_alone(trained, labels, caplog):
    new = model(labels=labels)
    decoder = copy.deepcopy(new.decoder)
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        start_from(new, trained, "run")
    assert equal(new.encoder, trained.encoder)
    assert equal(new.decoder, decoder)
    more = "'ä'" if "ä" in labels else "none"
    [line] = caplog.messages
    if len(labels) == 3:
        assert "the same labels in another order, so the decoder begins anew" in line
    else:
        assert f"begins anew ({len(labels)} labels, it had 3; not there before: {more}; gone: none)" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessor__dither": 0.5},
        {"preprocessor__n_fft": 512},
        {"preprocessor__highfreq": 8000.0},
        {"spec_augment__freq_masks": 2},
        {"encoder__jasper__1__dropout": 0.3},
        {"encoder__init_mode": None},
        {"encoder__jasper": [CONFIG["encoder"]["jasper"][0], BLOCK, BLOCK]},
    ],
    ids=str,
)
def test_what_only_training_sees_and_how_it_is_written_may_differ(trained, changes):
    new = model(**changes)
    start_from(new, trained, "run")
    assert equal(new.encoder, trained.encoder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"preprocessor__features": 9}, "preprocessor.features 8, but this model has 9"),
        ({"preprocessor__window_stride": 0.02}, "preprocessor.stride_samples 160, but this model has 320"),
        ({"preprocessor__sample_rate": 8000}, "preprocessor.sample_rate 16000, but this model has 8000"),
        ({"preprocessor__normalize": None}, "preprocessor.normalize per_feature, but this model has None"),
        ({"encoder__activation": "selu"}, "encoder.activation relu, but this model has selu"),
        ({"encoder__conv_mask": False}, "encoder.conv_mask True, but this model has False"),
        ({"encoder__jasper__1__kernel": 7}, "encoder.jasper[1].kernel 5, but this model has 7"),
        ({"encoder__jasper__1__dilation": 2}, "encoder.jasper[1].dilation 1, but this model has 2"),
        ({"encoder__jasper__1__residual": False}, "encoder.jasper[1].residual True, but this model has False"),
        ({"encoder__jasper__1__copies": 3}, "encoder.jasper of 3 blocks (copies counted), but this model has 4 blocks"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_model_is_refused_by_its_first_difference(trained, changes, named):
    new = model(**changes)
    before = copy.deepcopy(new)
    with pytest.raises(ConfigError) as error:
        start_from(new, trained, "run")
    assert str(error.value) == (
        f"init_from: run was trained with {named}; choose the model=... that it was trained with"
    )
    assert equal(new, before), "nothing was taken"


def test_an_archive_of_nemos():
    path = GOLDEN / "models" / "quartznet_tiny.nemo"
    trained = load_nemo(path)
    new = JasperCTC.from_config({**NemoArchive.read(path).model_config(), "labels": ["a"], "decoder": {}})
    start_from(new, trained, str(path))
    assert equal(new.encoder, trained.encoder)
