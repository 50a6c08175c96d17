"""Log-mel features equal NeMo's, whatever the padding holds."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from feature_rounding import feature_rounding
from torch.nn.utils.rnn import pad_sequence

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.model.features import MelConfig, MelSpectrogram, mel_filters

SYNTHETIC = ["base_pad0", "base_pad16", "none_pad0", "all_features_pad0", "win25_mel80_pad0", "exact_pad_pad0"]


def waves_of(arrays, count, fill=0.0):
    waves = [torch.from_numpy(arrays[f"wave{i}_int16"].astype(np.float32) / 32768) for i in range(count)]
    return pad_sequence(waves, batch_first=True, padding_value=fill), torch.tensor([len(w) for w in waves])


def assert_features(mel, waves, lens, arrays, name):
    features, frames = mel.eval()(waves, lens)
    expected = torch.from_numpy(arrays[f"feat_{name}"]).view(len(waves), mel.config.features, -1)
    assert frames.tolist() == arrays[f"len_{name}"].tolist()
    assert frames.dtype == torch.int64
    assert features.shape == expected.shape
    assert features.is_contiguous()
    assert_rounding_alone(features, expected, feature_rounding(mel, waves, lens))


def assert_rounding_alone(actual, expected, rounding):
    """Both may be off by `rounding`, in opposite directions."""
    assert rounding[rounding > 0].median() < 2e-4, "too much is allowed for an error to show"
    excess = (actual.double() - expected.double()).abs() - 2 * rounding
    assert (excess <= 0).all(), f"off by up to {excess.max():.3g} more than rounding explains"


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_features_equal_nemos(name, fill, golden):
    arrays = np.load(GOLDEN / "features_synthetic.npz")
    arguments = golden("features.json")["synthetic"][name]["args"]
    waves, lens = waves_of(arrays, 2, fill)
    assert_features(MelSpectrogram(MelConfig.read(arguments, "preprocessor")), waves, lens, arrays, name)


@pytest.mark.parametrize(
    "mistake",
    [{"preemph": 0.96}, {"n_window_size": 319}, {"lowfreq": 1.0}, {"highfreq": 7990.0}, {"log_zero_guard_value": 5e-8}],
    ids=str,
)
@pytest.mark.parametrize("name", SYNTHETIC)
def test_rounding_explains_no_mistake(name, mistake, golden):
    arrays = np.load(GOLDEN / "features_synthetic.npz")
    arguments = golden("features.json")["synthetic"][name]["args"] | mistake
    mel = MelSpectrogram(MelConfig.read(arguments, "preprocessor"))
    with pytest.raises(AssertionError, match="more than rounding explains"):
        assert_features(mel, *waves_of(arrays, 2), arrays, name)


def test_features_of_very_short_waves_equal_nemos():
    arrays = np.load(GOLDEN / "features_short.npz")
    assert_features(MelSpectrogram(MelConfig(pad_to=0)), *waves_of(arrays, 4), arrays, "base_pad0")


@pytest.mark.parametrize("name", ["0880", "0890", "0930"])
def test_features_of_real_speech_equal_nemos(name, shared_data):
    soundfile = pytest.importorskip("soundfile")
    reference = shared_data.parent / "golden" / f"features_librivox_{name}.npz"
    if not reference.exists():
        pytest.skip(f"needs {reference.name} in the folder golden beside the recordings")
    [audio] = (shared_data / "librivox").glob(f"*-{name}.flac")
    wave = torch.from_numpy(soundfile.read(audio, dtype="float32")[0])[None]
    lens = torch.tensor([wave.shape[1]])
    assert_features(MelSpectrogram(MelConfig(pad_to=0)), wave, lens, np.load(reference), "base_pad0")


def test_mel_filters_and_window_equal_nemos():
    arrays = np.load(GOLDEN / "features_filterbank.npz")
    state = MelSpectrogram().state_dict()
    assert list(state) == ["featurizer.window", "featurizer.fb"]
    # between 0 and 1: the last bit, 2^-24, of both cosines
    torch.testing.assert_close(state["featurizer.window"], torch.from_numpy(arrays["window"]), rtol=0, atol=2.0**-23)
    torch.testing.assert_close(state["featurizer.fb"], torch.from_numpy(arrays["fb"]), rtol=1e-6, atol=1e-9)
    eighty = mel_filters(16000, 512, 80, 0.0, 8000.0)
    torch.testing.assert_close(eighty[None], torch.from_numpy(arrays["fb80_win400"]), rtol=1e-6, atol=1e-9)


def test_mel_filters_have_unit_area():
    filters = mel_filters(16000, 1 << 16, 20, 50.0, 7000.0)
    torch.testing.assert_close(filters.sum(1) * 16000 / (1 << 16), torch.ones(20), rtol=1e-4, atol=0)


def test_the_defaults_are_nemos(golden):
    ours = {name: value for name, value in vars(MelConfig()).items() if not name.startswith("_")}
    nemos = golden("features.json")["preprocessor_defaults"]
    assert {name: nemos[name] for name in ours} == ours
    assert {name: nemos[name] for name in nemos if name not in ours} == {
        n: MelConfig.fixed[n] for n in nemos if n not in ours
    }


def test_a_batch_in_slices_equals_single_utterances(monkeypatch):
    torch.manual_seed(0)
    mel = MelSpectrogram(MelConfig(pad_to=0)).eval()
    waves, lens = torch.randn(5, 8000), torch.tensor([8000, 7000, 6400, 5000, 3000])
    batch, frames = mel(waves, lens)
    rounding = feature_rounding(mel, waves, lens)
    for i, n in enumerate(frames.tolist()):
        alone, _ = mel(waves[i : i + 1, : lens[i]], lens[i : i + 1])
        assert_rounding_alone(batch[i, :, :n], alone[0, :, :n], rounding[i, :, :n])
        assert batch[i, :, n:].count_nonzero() == 0
    monkeypatch.setattr("lightning_novograd.recipes.asr.model.features._SLICE_VALUES", 1)
    assert_rounding_alone(mel(waves, lens)[0], batch, rounding)


def test_double_precision_waves_give_double_precision_features():
    wave, lens = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    mel = MelSpectrogram().eval()
    single, double = mel(wave, lens)[0], mel(wave.double(), lens)[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3)


def test_dither_is_for_training_only_and_repeats_with_the_seed():
    mel = MelSpectrogram(MelConfig(dither=1e-3))
    wave, lens = torch.zeros(1, 8000), torch.tensor([8000])
    mel.eval()
    assert torch.equal(mel(wave, lens)[0], mel(wave, lens)[0])
    mel.train()
    torch.manual_seed(0)
    first, second = mel(wave, lens)[0], mel(wave, lens)[0]
    torch.manual_seed(0)
    assert torch.equal(mel(wave, lens)[0], first)
    assert not torch.equal(first, second)
    assert wave.count_nonzero() == 0


@pytest.mark.parametrize("preemph", [None, 0.0], ids=["none", "zero"])
def test_without_preemphasis_the_spectrum_is_the_waves_own(preemph):
    arguments = {"preemph": preemph, "normalize": None, "log": False, "pad_to": 0, "dither": 0.0}
    mel = MelSpectrogram(MelConfig(**arguments))
    wave = torch.zeros(1, 1600)
    wave[0, 800] = 1.0  # an impulse in the middle of frame 5: a flat spectrum of the window's centre squared
    features, _ = mel(wave, torch.tensor([1600]))
    centre = mel.featurizer.window[160] ** 2
    torch.testing.assert_close(features[0, :, 5], centre * mel.featurizer.fb[0].sum(1))


@pytest.mark.parametrize(
    ("kind", "value", "floor"),
    [("add", 1e-3, 1e-3), ("clamp", 1e-3, 1e-3), ("clamp", "tiny", 1.1754943508222875e-38), ("add", "eps", 2.0**-23)],
)
def test_the_logarithm_of_silence_is_guarded(kind, value, floor):
    config = MelConfig(log_zero_guard_type=kind, log_zero_guard_value=value, normalize=None, pad_to=0)
    features, frames = MelSpectrogram(config).eval()(torch.zeros(1, 1600), torch.tensor([1600]))
    torch.testing.assert_close(features[0, :, : int(frames)], torch.full((64, 10), floor).log())


BAD = [
    ({"featurs": 64}, "p.featurs", "did you mean 'features'?"),
    ({"features": 64.5}, "p.features", "must be a whole number"),
    ({"window": "han"}, "p.window", "did you mean 'hann'?"),
    ({"normalize": "per_featur"}, "p.normalize", "did you mean 'per_feature'?"),
    ({"n_fft": 256}, "p.n_fft", "256 is less than the window's 320 samples"),
    ({"window_size": 0}, "p.window_size", "must be more than 0"),
    ({"window_size": None}, "p.window_size", "is null"),
    ({"window_stride": 1e-6}, "p.window_stride", "too few samples at 16000 Hz"),
    ({"highfreq": 9000}, "p.highfreq", "above half the sample rate"),
    ({"lowfreq": 8000}, "p.lowfreq", "is not below highfreq"),
    ({"frame_splicing": 2}, "p.frame_splicing", "2 is not supported; only 1"),
    ({"exact_pad": True, "n_window_stride": 161}, "p.exact_pad", "needs an even window stride"),
    ({"log_zero_guard_value": "small"}, "p.log_zero_guard_value", "must be a number, 'tiny' or 'eps'"),
    ({"log_zero_guard_type": "max"}, "p.log_zero_guard_type", "Allowed: add, clamp"),
    ({"dither": -1}, "p.dither", "must be at least 0"),
]


@pytest.mark.parametrize(("keys", "path", "problem"), BAD)
def test_a_bad_argument_is_named(keys, path, problem):
    with pytest.raises(ConfigError) as error:
        MelConfig.read(keys, "p")
    assert error.value.path == path
    assert problem in error.value.problem
