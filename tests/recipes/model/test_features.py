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


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett"])
def test_windows_are_symmetric(name):
    window = MelSpectrogram(MelConfig(window=name, n_window_size=9)).featurizer.window
    assert torch.equal(window, getattr(torch, f"{name}_window")(9, periodic=False))
    torch.testing.assert_close(window, window.flip(0))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (320, 160, 512, 8000.0)),
        ({"sample_rate": 8000}, (160, 80, 256, 4000.0)),
        ({"window_size": 0.025, "window_stride": 0.0125}, (400, 200, 512, 8000.0)),
        (
            {"n_window_size": 512, "n_window_stride": 99, "window_size": None, "window_stride": None},
            (512, 99, 512, 8e3),
        ),
        ({"n_window_size": 513}, (513, 160, 1024, 8000.0)),
        ({"n_fft": 320, "highfreq": 8000, "lowfreq": 7999.0}, (320, 160, 320, 8000.0)),
        ({"n_window_size": 2, "n_window_stride": 1, "highfreq": 100.5}, (2, 1, 2, 100.5)),
        ({"exact_pad": True, "n_window_stride": 2}, (320, 2, 512, 8000.0)),
    ],
)
def test_seconds_are_samples(keys, expected):
    c = MelConfig.read(keys, "p")
    assert (c.window_samples, c.stride_samples, c.fft_samples, c.top_hz) == expected


def test_dither_has_the_deviation_that_is_said_and_ends_with_the_wave():
    mel = MelSpectrogram(MelConfig(dither=0.5, preemph=None)).train()
    wave, lens = torch.zeros(2, 20000), torch.tensor([20000, 10000])
    torch.manual_seed(0)
    noise = mel._pre_emphasize(wave, lens)
    torch.testing.assert_close(noise[0].std(), torch.tensor(0.5), rtol=0.03, atol=0)
    assert noise[1, 9999] != 0
    assert not noise[1, 10000:].any()
    mel.eval()
    assert not mel._pre_emphasize(wave, lens).any()
    before = torch.get_rng_state()
    MelSpectrogram(MelConfig(dither=0.0)).train()(wave, lens)
    assert torch.equal(torch.get_rng_state(), before), "without dither nothing is drawn"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_features_have_the_waves_dtype_and_no_gradient_and_ignore_autocast(dtype):
    mel = MelSpectrogram().eval()
    wave, lens = 0.1 * torch.randn(1, 4000).to(dtype).requires_grad_(), torch.tensor([4000])
    plain, _ = mel(wave, lens)
    with torch.autocast("cpu", torch.bfloat16):
        inside, frames = mel(wave, lens)
    assert (inside.dtype, inside.requires_grad, inside.is_contiguous(), frames.dtype) == (
        dtype,
        False,
        True,
        torch.int64,
    )
    assert torch.equal(plain, inside)


@pytest.mark.parametrize(("pad_to", "frames"), [(0, 26), (1, 26), (13, 26), (16, 32), (25, 50)])
def test_frames_are_padded_to_a_multiple(pad_to, frames):
    features, lens = MelSpectrogram(MelConfig(pad_to=pad_to)).eval()(torch.randn(1, 4000), torch.tensor([4000]))
    assert features.shape == (1, 64, frames)
    assert lens.tolist() == [25]
    assert not features[:, :, 25:].any()


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
def test_features_of_one_frame_are_zeros_and_of_more_are_normalized(normalize):
    mel = MelSpectrogram(MelConfig(normalize=normalize, pad_to=0)).eval()
    torch.manual_seed(0)
    features, lens = mel(torch.randn(3, 4000), torch.tensor([4000, 160, 0]))
    assert lens.tolist() == [25, 1, 0]
    assert torch.isfinite(features).all()
    one = features[0, :, :25]
    over = 1 if normalize == "per_feature" else (0, 1)
    torch.testing.assert_close(one.mean(over), torch.zeros_like(one.mean(over)), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.std(over), torch.ones_like(one.std(over)), rtol=1e-3, atol=0)
    assert features[1].any() == (normalize == "all_features"), "one frame has no deviation of a feature"


BAD = [
    ({"featurs": 64}, "p.featurs", "did you mean 'features'?"),
    ({"features": 64.5}, "p.features", "must be a whole number"),
    ({"window": "han"}, "p.window", "did you mean 'hann'?"),
    ({"normalize": "per_featur"}, "p.normalize", "did you mean 'per_feature'?"),
    ({"n_fft": 256}, "p.n_fft", "256 is less than the window's 320 samples"),
    ({"window_size": 0}, "p.window_size", "must be more than 0"),
    ({"window_size": None}, "p.window_size", "is null"),
    ({"window_stride": 1e-6}, "p.window_stride", "too few samples at 16000 Hz"),
    ({"window_stride": None}, "p.window_stride", "is null, and so is n_window_stride"),
    ({"window_size": 1e-4}, "p.window_size", "0.0001 s are too few samples at 16000 Hz"),
    ({"n_window_size": 1}, "p.window_size", "too few samples at 16000 Hz"),
    ({"highfreq": 8000.5}, "p.highfreq", "8000.5 Hz is above half the sample rate (8000.0 Hz)"),
    ({"lowfreq": 100, "highfreq": 100}, "p.lowfreq", "100.0 Hz is not below highfreq (100.0 Hz)"),
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
