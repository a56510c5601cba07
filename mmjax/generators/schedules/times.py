"""At which times and noise levels a sampler evaluates the denoiser."""

import numpy as np

from mmjax.config import check_choice
from mmjax.generators.noise import NoiseConfig, alphas_cumprod

SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ("train", "karras", "exponential")


def times(train_steps: int, steps: int, spacing: str, offset: int = 0, behind: bool = False) -> np.ndarray:
    """float64 [steps], descending times of training (Lin et al., 2024, table 2).

    Args:
        train_steps: how many there are.
        steps: how many are wanted.
        spacing: "leading" counts from 0 in whole strides, "trailing" from the end, "linspace" takes both ends.
        offset: what "leading" adds.
        behind: whether one more time is thought to follow, so that the last one is not 0 ("leading", "linspace").
    """
    check_choice("schedule.spacing", spacing, SPACINGS)
    more = steps + behind
    if spacing == "linspace":
        found = np.linspace(0, train_steps - 1, more)[::-1]
    elif spacing == "leading":
        found = (np.arange(more) * (train_steps // more))[::-1] + float(offset)
    else:
        return np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1.0
    return found[:steps].astype(np.float64)


def train_sigmas(config: NoiseConfig) -> np.ndarray:
    """float64 [train_steps], sigma_t / alpha_t of every time; the last is finite even where nothing is left of x_0."""
    total = alphas_cumprod(config).copy()
    if config.zero_snr:
        total[-1] = 2.0**-24
    return np.sqrt((1 - total) / total)


def spread(first: float, last: float, count: int, kind: str) -> np.ndarray:
    """`count` levels from `first` down to `last`: even in their 7th root ("karras", 2022) or logarithm."""
    if kind == "exponential":
        return np.exp(np.linspace(np.log(first), np.log(last), count))
    return np.linspace(first ** (1 / 7), last ** (1 / 7), count) ** 7


def times_of(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The time, with its fraction, at which training had each noise level; between times the logarithm is linear."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(trained), np.arange(len(trained)))
