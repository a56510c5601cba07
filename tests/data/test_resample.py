"""Resampling against scipy (which jax brings along), and against sines whose samples are known."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from mmjax.data.resample import resample


@pytest.mark.parametrize(
    "rate, new_rate", [(44100, 16000), (16000, 48000), (8000, 16000), (48000, 16000), (11025, 16000), (7, 5), (3, 1)]
)
@pytest.mark.parametrize("count", [1, 2, 997, 4001])
def test_equals_scipy(rate, new_rate, count):
    samples = np.random.default_rng(count).normal(size=count).astype(np.float32)
    expected = resample_poly(samples.astype(np.float64), new_rate, rate)
    got = resample(samples, rate, new_rate)
    assert got.dtype == np.float32 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rate, new_rate", [(44100, 16000), (22050, 48000)])
def test_a_sine_stays_that_sine_and_what_is_too_high_goes(rate, new_rate):
    sine = lambda hertz, at: np.sin(2 * np.pi * hertz * np.arange(at) / at)
    got = resample(sine(1000, rate), rate, new_rate)
    assert len(got) == new_rate
    middle = slice(new_rate // 10, -new_rate // 10)
    np.testing.assert_allclose(got[middle], sine(1000, new_rate)[middle], atol=2e-3)
    if new_rate < rate:
        assert np.abs(resample(sine(12000, rate), rate, new_rate)[middle]).max() < 1e-3


def test_same_rate_and_bad_rates():
    samples = np.array([1.0, -2.0])
    np.testing.assert_array_equal(resample(samples, 9, 9), samples)
    assert resample(np.zeros(0), 3, 2).shape == (0,)
    for rates in ((0, 3), (3, -1), (2.5, 3)):
        with pytest.raises(ValueError, match="positive whole numbers"):
            resample(samples, *rates)
    with pytest.raises(ValueError, match="one dimension"):
        resample(np.zeros((2, 3)), 3, 2)
