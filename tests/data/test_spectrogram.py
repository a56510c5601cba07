"""Log-mel spectrograms against transformers' audio_utils, and against what they mean."""

import dataclasses

import numpy as np
import pytest
from transformers import audio_utils

from mmjax.config import ConfigError
from mmjax.data.spectrogram import BLOCK, MelConfig, hertz_to_mel, log_mel, mel_filters, mel_to_hertz

CONFIG = MelConfig(16000, 400, 160, 400, 23, 0.0, 8000.0)
KALDI = dict(scale="kaldi", mel_triangles=True, periodic=False, center=False, remove_mean=True, preemphasis=0.97)
CONFIGS = {
    "slaney": dataclasses.replace(CONFIG, equal_area=True),
    "htk": dataclasses.replace(CONFIG, scale="htk", logarithm="decibel", fft_length=512, hop_length=111),
    "kaldi": MelConfig(11025, 301, 97, 512, 17, 20.0, 5512.0, **KALDI, logarithm="natural", floor=1e-7),
}
LOGARITHMS = {"natural": "log", "decimal": "log10", "decibel": "dB"}


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32) * 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name):
    config = CONFIGS[name]
    filters = audio_utils.mel_filter_bank(
        config.fft_length // 2 + 1, config.num_mels, config.min_frequency, config.max_frequency, config.sampling_rate,
        "slaney" if config.equal_area else None, config.scale, config.mel_triangles,
    )  # fmt: skip
    np.testing.assert_allclose(mel_filters(config), filters, rtol=1e-10, atol=1e-12)
    for count in (config.frame_length, config.frame_length + 1, 5003):
        samples = noise(count, count)
        expected = audio_utils.spectrogram(
            samples,
            audio_utils.window_function(config.frame_length, "hann", config.periodic),
            config.frame_length,
            config.hop_length,
            config.fft_length,
            power=2.0,
            center=config.center,
            preemphasis=config.preemphasis or None,
            mel_filters=filters,
            mel_floor=config.floor,
            log_mel=LOGARITHMS[config.logarithm],
            remove_dc_offset=config.remove_mean,
        ).T
        got = log_mel(samples, config)
        assert got.shape == expected.shape == (config.num_frames(count), config.num_mels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(1, np.sqrt(np.mean(expected**2))))


def test_a_tone_is_loudest_in_its_band():
    for hertz in (440.0, 3000.0):
        tone = np.sin(2 * np.pi * hertz * np.arange(8000) / 16000)
        band = log_mel(tone, CONFIG)[10:-10].argmax(axis=1)
        centers = mel_to_hertz(np.linspace(0, hertz_to_mel(np.array(8000.0), "slaney"), 25), "slaney")[1:-1]
        assert (band == np.abs(centers - hertz).argmin()).all()
        louder = log_mel(10 * tone, CONFIG)[20, band[0]] - log_mel(tone, CONFIG)[20, band[0]]
        assert louder == pytest.approx(2, abs=1e-5), "ten times the amplitude is a hundred times the power"


@pytest.mark.parametrize("scale", ["htk", "kaldi", "slaney"])
def test_the_scale_and_its_inverse(scale):
    hertz = np.array([0.0, 31.0, 999.9, 1000.0, 1000.1, 7777.0])
    mels = hertz_to_mel(hertz, scale)
    assert (np.diff(mels) > 0).all()
    np.testing.assert_allclose(mel_to_hertz(mels, scale), hertz, atol=1e-9)
    np.testing.assert_allclose(mels, audio_utils.hertz_to_mel(hertz, scale), rtol=1e-12)


def test_long_sound_is_the_same_block_by_block():
    config = dataclasses.replace(CONFIG, hop_length=10, center=False)
    samples = noise(400 + 10 * (2 * BLOCK + 6))
    whole = log_mel(samples, config)
    assert len(whole) == 2 * BLOCK + 7
    np.testing.assert_array_equal(log_mel(samples[10 * (BLOCK + 1) :], config), whole[BLOCK + 1 :])


def test_bad_options_and_samples_are_named():
    for change, words in (
        ({"scale": "bark"}, "'bark' is not one of 'htk'"),
        ({"logarithm": "log2"}, "logarithm"),
        ({"fft_length": 256}, "fft_length 256 is shorter than frame_length 400"),
        ({"max_frequency": 9000.0}, "9000.0 must rise within 0 .. 8000.0"),
        ({"hop_length": 0}, "hop_length must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match="399 samples are fewer than one frame, 400"):
        log_mel(noise(399), dataclasses.replace(CONFIG, center=False))
    with pytest.raises(ValueError, match="0 samples"):
        log_mel(noise(0), CONFIG)
    with pytest.raises(ValueError, match=r"one dimension, got the shape \(2, 500\)"):
        log_mel(np.zeros((2, 500)), CONFIG)
