"""Waveforms of the training set, changed as seed, epoch and utterance say."""

import json

import numpy as np
import pytest
import soundfile

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.data.augment import Augment, AugmentConfig, NoiseConfig, synthetic_noise

WAVE = np.sin(np.arange(16000, dtype=np.float32) / 7) / 2


@pytest.mark.parametrize(
    ("block", "path", "words"),
    [
        ({"speed": []}, "a.speed", "list of factors"),
        ({"speed": [0.49]}, "a.speed", "0.5 to 2"),
        ({"speed": [2.01]}, "a.speed", "0.5 to 2"),
        ({"speed": ["1"]}, "a.speed", "0.5 to 2"),
        ({"speed": [1.0, None]}, "a.speed", "0.5 to 2"),
        ({"speed": [True]}, "a.speed", "list of factors"),
        ({"speed": {"min": 0.9}}, "a.speed", "keys min and max, not min"),
        ({"speed": {"min": 0.9, "max": 2.5}}, "a.speed", "0.5 to 2"),
        ({"speed": {"min": 1.2, "max": 0.9}}, "a.speed", "min 1.2 exceeds max 0.9"),
        ({"speed": 1.1}, "a.speed", "must be"),
        ({"noise": {"prop": 1}}, "a.noise.prop", "did you mean 'prob'"),
        ({"noise": {"prob": 1.5}}, "a.noise.prob", "at most 1"),
        ({"noise": {"min_snr_db": 20, "max_snr_db": 10}}, "a.noise.min_snr_db", "exceeds max_snr_db 10"),
        ({"noise": [1]}, "a.noise", "mapping"),
    ],
)
def test_what_makes_no_sense_is_refused(block, path, words):
    with pytest.raises(ConfigError) as error:
        AugmentConfig.read(block, "a")
    assert error.value.path == path
    assert words in error.value.problem


def test_nothing_is_changed_by_default():
    augment = Augment()
    assert augment(WAVE, 3, 5) is WAVE
    assert augment.fastest == 1.0


@pytest.mark.parametrize(
    ("speed", "fastest"), [([0.9, 1.0, 1.1], 1.1), ({"min": 0.85, "max": 1.15}, 1.15), (None, 1.0), ([0.8], 0.8)]
)
def test_the_fastest_speed_is_known(speed, fastest):
    assert Augment(AugmentConfig(speed=speed)).fastest == fastest


def test_speeds_of_a_range_fill_it_and_are_what_is_heard():
    augment = Augment(AugmentConfig(speed={"min": 0.85, "max": 1.15}), seed=3)
    speeds = [augment.speed(0, index) for index in range(400)]
    assert min(speeds) >= 0.85
    assert max(speeds) <= 1.15
    assert np.histogram(speeds, bins=6, range=(0.85, 1.15))[0].min() > 40
    for index in range(3):
        assert abs(len(augment(WAVE, 0, index)) - 16000 / speeds[index]) <= 1


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}, {"index": 1}], ids=str)
@pytest.mark.parametrize(
    "block", [{"speed": {"min": 0.5, "max": 2.0}}, {"noise": NoiseConfig(prob=1)}], ids=lambda b: min(b)
)
def test_a_waveform_depends_on_seed_epoch_and_utterance_alone(block, changed):
    def heard(seed=0, epoch=0, index=0):
        return Augment(AugmentConfig(**block), seed=seed)(WAVE, epoch, index)

    np.testing.assert_array_equal(heard(), heard())
    assert not np.array_equal(heard(), heard(**changed))


def test_noise_has_the_ratio_that_is_asked_for_and_its_share_of_the_utterances():
    config = AugmentConfig(noise=NoiseConfig(prob=0.25, min_snr_db=5, max_snr_db=15))
    augment = Augment(config)
    ratios = []
    for index in range(200):
        heard = augment(WAVE, 0, index)
        assert heard.dtype == np.float32
        if heard is not WAVE:
            ratios.append(10 * np.log10(np.mean(WAVE**2) / np.mean((heard - WAVE) ** 2)))
    assert 30 <= len(ratios) <= 70
    assert min(ratios) >= 4.99
    assert max(ratios) <= 15.01
    assert max(ratios) - min(ratios) > 5


def test_silence_stays_silence():
    silence = np.zeros(100, dtype=np.float32)
    heard = Augment(AugmentConfig(noise=NoiseConfig(prob=1)))(silence, 0, 0)
    np.testing.assert_array_equal(heard, silence)


def test_synthetic_noise_is_between_white_and_brown():
    slopes = []
    for seed in range(20):
        power = np.abs(np.fft.rfft(synthetic_noise(np.random.default_rng(seed), 1 << 14))) ** 2
        frequencies = np.arange(1, len(power))
        slopes.append(-np.polyfit(np.log(frequencies), np.log(power[1:]), 1)[0])
    assert min(slopes) > -0.1
    assert max(slopes) < 2.1
    assert max(slopes) - min(slopes) > 1


def test_recorded_noise_comes_from_a_random_place_and_is_repeated_where_it_is_short(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.arange(-16000, 16000) / 16000, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.5), 16000, subtype="FLOAT")
    (tmp_path / "noise.json").write_text(
        "\n".join(json.dumps({"audio_filepath": name}) for name in ("long.wav", "short.wav"))
    )
    noise = NoiseConfig(prob=1, min_snr_db=0, max_snr_db=0, manifest=str(tmp_path / "noise.json"))
    recordings = Augment(AugmentConfig(noise=noise)).recordings
    drawn = [recordings.draw(np.random.default_rng(seed), 8000) for seed in range(12)]
    assert all(wave.shape == (8000,) for wave in drawn)
    short = [wave for wave in drawn if np.ptp(wave) == 0]
    starts = {float(wave[0]) for wave in drawn if np.ptp(wave) > 0}
    assert short
    assert len(starts) == 12 - len(short)


def test_lines_of_a_noise_manifest_end_at_line_feeds_alone(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.5), 16000)
    line = json.dumps({"audio_filepath": "a.wav", "text": "\u2028"}, ensure_ascii=False)
    (tmp_path / "noise.json").write_text(line + "\n", encoding="utf-8")
    noise = NoiseConfig(manifest=str(tmp_path / "noise.json"))
    assert len(Augment(AugmentConfig(noise=noise)).recordings.recordings) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "noise.json cannot be read"),
        ("", "is empty"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read: 'audio_filepath'"),
        ('{"audio_filepath": "gone.wav"}', "gone.wav does not exist"),
    ],
)
def test_noise_that_cannot_be_read_is_an_error(tmp_path, content, words):
    path = tmp_path / "noise.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words):
        Augment(AugmentConfig(noise=NoiseConfig(manifest=str(path))))
