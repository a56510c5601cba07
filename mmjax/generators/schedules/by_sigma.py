"""Samplers that step from one noise level to another, x = x_0 + sigma noise: Euler, with fresh noise, and Heun."""

import numpy as np

from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.predictions import clean_of_scaled
from mmjax.generators.schedules.steps import Y1, A, Row, X, Y
from mmjax.generators.schedules.times import spread, times, times_of, train_sigmas


def sigma_levels(config: ScheduleConfig, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Times [steps] and noise levels [steps + 1], the last one where sampling ends."""
    trained = train_sigmas(config.noise)
    at = times(config.noise.train_steps, steps, config.spacing, config.offset)
    levels = np.interp(at, np.arange(len(trained)), trained)
    if config.sigmas != "train":
        levels = spread(levels[0], levels[-1], steps, config.sigmas)
        at = times_of(levels, trained)
    return at, np.append(levels, 0.0 if config.final_sigma_zero else trained[0])


def first_sigma(config: ScheduleConfig, steps: int) -> float:
    """What fresh noise is multiplied with to be the first latent."""
    most = sigma_levels(config, steps)[1].max()
    return most if config.spacing in ("linspace", "trailing") else np.sqrt(most**2 + 1)


def _scale(sigma: float) -> float:
    return 1 / np.sqrt(sigma**2 + 1)


def euler(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """A straight step along the probability flow."""
    at, sigmas = sigma_levels(config, steps)
    rows = []
    for time, now, to in zip(at[start:], sigmas[start:], sigmas[start + 1 :], strict=False):
        keep = clean_of_scaled(config.noise.prediction, now)
        rows.append(Row(time, keep, X + (to - now) / now * (X - Y), scale=_scale(now)))
    return rows


def euler_ancestral(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """A step further down than wanted, and fresh noise up again."""
    at, sigmas = sigma_levels(config, steps)
    rows = []
    for time, now, to in zip(at[start:], sigmas[start:], sigmas[start + 1 :], strict=False):
        up = np.sqrt(to**2 * (now**2 - to**2) / now**2)
        down = np.sqrt(to**2 - up**2)
        keep = clean_of_scaled(config.noise.prediction, now)
        rows.append(Row(time, keep, X + (down - now) / now * (X - Y), scale=_scale(now), noise=up))
    return rows


def heun(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Two evaluations a step but for the last: the slopes at both ends. What is kept is a slope."""
    at, sigmas = sigma_levels(config, steps)
    rows = []
    for number in range(start, steps):
        now, to = sigmas[number], sigmas[number + 1]
        slope = (X - clean_of_scaled(config.noise.prediction, now)) / now
        rows.append(Row(at[number], slope, X + (to - now) * Y, anchor=X, scale=_scale(now)))
        if number + 1 < steps:
            slope = (X - clean_of_scaled(config.noise.prediction, to)) / to
            rows.append(Row(at[number + 1], slope, A + (to - now) / 2 * (Y1 + Y), scale=_scale(to)))
    return rows
