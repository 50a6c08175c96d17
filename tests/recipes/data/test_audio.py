"""Audio files: samples at the model's rate, errors that name the file."""

import numpy as np
import pytest
import soundfile
import speech_files

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.data.audio import change_speed, load_audio, read_header, resampled_length


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_16_bit_samples_come_out_exactly(tmp_path, extension):
    samples = np.array([-32768, -1, 0, 1, 32767] * 100, dtype=np.int16)
    soundfile.write(tmp_path / f"a.{extension}", samples, 16000)
    wave = load_audio(tmp_path / f"a.{extension}", 16000)
    assert wave.dtype == np.float32
    assert (wave * 32768 == samples).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_signal(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    wave = load_audio(tmp_path / "a.wav", 16000)
    assert len(wave) == resampled_length(rate, rate, 16000) == 16000
    inside = slice(800, -800)  # the filter rings at the ends
    np.testing.assert_allclose(wave[inside], tone(16000)[inside], atol=2e-3)


def test_a_part_of_a_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.arange(1000, dtype=np.int16), 1000)
    part = load_audio(tmp_path / "a.wav", 1000, offset=0.25, duration=0.1) * 32768
    assert (part == np.arange(250, 350)).all()
    rest = load_audio(tmp_path / "a.wav", 1000, offset=0.95, duration=1.0) * 32768
    assert (rest == np.arange(950, 1000)).all()


def test_several_channels_are_averaged_only_when_asked(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, -0.25]] * 100), 16000)
    with pytest.raises(DataError, match=r"a\.wav has 2 channels; data\.downmix=true \(--downmix\) averages them"):
        load_audio(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", 16000, downmix=True), 0.125, atol=1e-4)


def test_header(tmp_path):
    header = read_header(speech_files.write_audio(tmp_path / "a.wav", 0.5, rate=8000, channels=2))
    assert header == (4000, 8000, 2)
    assert header.seconds == 0.5


def truncated_flac(folder):
    path = speech_files.write_audio(folder / "a.flac", 2.0)
    path.write_bytes(path.read_bytes()[:20000])
    return path


def text_file(folder):
    path = folder / "a.wav"
    path.write_text("this is not audio")
    return path


def empty_wav(folder):
    soundfile.write(folder / "a.wav", np.zeros(0), 16000)
    return folder / "a.wav"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda folder: folder / "a.wav", r"audio file .*a\.wav does not exist", id="missing"),
        pytest.param(text_file, r"a\.wav is corrupt: .*[Ff]ormat not recogni[sz]ed", id="not audio"),
        pytest.param(truncated_flac, r"a\.flac is corrupt", id="truncated"),
        pytest.param(empty_wav, r"a\.wav is corrupt: 0 of 0 samples", id="no samples"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        load_audio(make(tmp_path), 16000)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 2.0])
def test_speed_scales_length_and_pitch(factor):
    wave = change_speed(tone(16000).astype(np.float32), factor)
    assert len(wave) == pytest.approx(16000 / factor, abs=1)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 16000))
    assert spectrum.argmax() == pytest.approx(440 * factor, abs=2)


def test_a_recording_of_one_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5]), 16000)
    assert read_header(tmp_path / "a.wav").samples == 1
    assert load_audio(tmp_path / "a.wav", 16000).tolist() == [0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda folder: folder / "a.wav", r"^audio file .*a\.wav does not exist$", id="missing"),
        pytest.param(text_file, r"a\.wav cannot be read: .*[Ff]ormat not recogni[sz]ed", id="not audio"),
        pytest.param(empty_wav, r"a\.wav holds no samples$", id="no samples"),
    ],
)
def test_headers_of_files_that_cannot_be_used(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        read_header(make(tmp_path))


def test_a_part_behind_the_end_has_no_samples(tmp_path):
    path = speech_files.write_audio(tmp_path / "a.wav", 0.5)
    with pytest.raises(DataError, match="is corrupt: 0 of 0 samples can be read"):
        load_audio(path, 16000, offset=0.6)


def test_what_is_averaged_is_resampled_and_contiguous(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, -0.25]] * 8000), 8000)
    wave = load_audio(tmp_path / "a.wav", 16000, downmix=True)
    assert (wave.dtype, wave.shape, wave.flags.c_contiguous) == (np.float32, (16000,), True)
    np.testing.assert_allclose(wave[1000:-1000], 0.125, atol=1e-3)
    assert resampled_length(3, 2, 1) == 2
    assert resampled_length(3, 2, 2) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_samples_that_are_not_finite_are_refused_unless_asked_for(tmp_path, value):
    path = tmp_path / "a.wav"
    wave = np.full((800, 2), 0.5, np.float32)
    wave[[400, 500], 1] = value
    soundfile.write(path, wave, 8000, subtype="FLOAT")
    message = r"a\.wav has 2 samples that are not finite \(NaN or infinity\), the first at 0\.050 s$"
    with pytest.raises(DataError, match=message):
        load_audio(path, 8000, downmix=True)
    with pytest.raises(DataError, match=r"1 samples .* the first at 0\.062 s$"):
        load_audio(path, 8000, offset=0.0625, downmix=True)
    assert np.isfinite(load_audio(path, 8000, duration=0.05, downmix=True)).all()
    kept = load_audio(path, 8000, downmix=True, keep_nonfinite=True)
    assert np.flatnonzero(~np.isfinite(kept)).tolist() == [400, 500]


def test_samples_whose_sum_alone_overflows_are_fine(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(4, 3e38, np.float32), 8000, subtype="FLOAT")
    assert load_audio(tmp_path / "a.wav", 8000)[0] == np.float32(3e38)
