"""Samplers that step from one time of training to another: DDPM, DDIM, PNDM and LCM."""

import numpy as np

from mmjax.generators.noise import alphas_cumprod
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.predictions import clean, noise
from mmjax.generators.schedules.steps import Y1, Y2, Y3, A, M, Row, X, Y
from mmjax.generators.schedules.times import times

# Adams-Bashforth weights of what is kept, this prediction first, by how many there are.
ADAMS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def _whole(config: ScheduleConfig, steps: int) -> np.ndarray:
    """The times as whole numbers."""
    return np.round(times(config.noise.train_steps, steps, config.spacing, config.offset)).astype(int)


def _clip(config: ScheduleConfig) -> float:
    return np.inf if config.clip is None else config.clip


def _final(config: ScheduleConfig) -> float:
    return 1.0 if config.final_is_clean else alphas_cumprod(config.noise)[0]


def ddpm(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Ancestral sampling."""
    total, at = alphas_cumprod(config.noise), _whole(config, steps)
    rows = []
    for number in range(start, steps):
        now, before = total[at[number]], total[at[number + 1]] if number + 1 < steps else 1.0
        beta = 1 - now / before
        latent = np.sqrt(before) * beta / (1 - now) * Y + np.sqrt(now / before) * (1 - before) / (1 - now) * X
        variance = beta if config.large_variance else max((1 - before) / (1 - now) * beta, 1e-20)
        keep = clean(config.noise.prediction, np.sqrt(now), np.sqrt(1 - now))
        added = np.sqrt(variance) if at[number] > 0 else 0.0
        rows.append(Row(at[number], keep, latent, noise=added, clip=_clip(config)))
    return rows


def ddim(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Without noise (eta 0), or with a share of it."""
    total, at = alphas_cumprod(config.noise), _whole(config, steps)
    stride, rows = config.noise.train_steps // steps, []
    for time in at[start:]:
        now = total[time]
        before = total[time - stride] if time >= stride else _final(config)
        alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
        spread = config.eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        direction = noise(config.noise.prediction, alpha, sigma)
        latent = np.sqrt(before) * Y + np.sqrt(max(1 - before - spread**2, 0.0)) * direction
        keep = clean(config.noise.prediction, alpha, sigma)
        rows.append(Row(time, keep, latent, noise=spread, clip=_clip(config)))
    return rows


def pndm(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Linear multistep; the second time is evaluated twice, first to begin with a mean of two."""
    total, at = alphas_cumprod(config.noise), _whole(config, steps)
    stride, rows = config.noise.train_steps // steps, []

    def moved(x: np.ndarray, time: int, to: int, predicted: np.ndarray) -> np.ndarray:
        now, before = total[time], total[to] if to >= 0 else _final(config)
        if config.noise.prediction == "v":
            predicted = np.sqrt(now) * predicted + np.sqrt(1 - now) * x
        # How much noise leaves on the way, with its factor written so that it does not cancel.
        divisor = now * np.sqrt(1 - before) + np.sqrt(now * (1 - now) * before)
        return np.sqrt(before / now) * x - (before - now) / divisor * predicted

    evaluated = [*at[:2], *at[1:]] if steps > 1 else list(at)
    for number, time in enumerate(evaluated[start:]):
        if number == 0:
            rows.append(Row(time, M, moved(X, time, time - stride, Y), anchor=X))
        elif number == 1:
            rows.append(Row(time, M, moved(A, time + stride, time, (Y + Y1) / 2), push=False))
        else:
            weights = ADAMS[min(number, 4)]
            predicted = sum(weight * kept for weight, kept in zip(weights, (Y, Y1, Y2, Y3), strict=False))
            rows.append(Row(time, M, moved(X, time, time - stride, predicted)))
    return rows


def lcm(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """x_0 at once, noised again to the next time.

    Raises:
        ValueError: more steps than it was distilled with.
    """
    if steps > config.original_steps:
        raise ValueError(f"{steps} steps, but schedule.original_steps is {config.original_steps}")
    total, known = alphas_cumprod(config.noise), config.noise.train_steps // config.original_steps
    learned = (np.arange(1, config.original_steps + 1) * known - 1)[::-1]
    at = learned[np.floor(np.linspace(0, len(learned), steps, endpoint=False)).astype(int)]
    rows = []
    for number in range(start, steps):
        now, scaled = total[at[number]], at[number] * config.time_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        latent, added = out * Y + skip * X, 0.0
        if number + 1 < steps:
            before = total[at[number + 1]]
            latent, added = np.sqrt(before) * latent, np.sqrt(1 - before)
        keep = clean(config.noise.prediction, np.sqrt(now), np.sqrt(1 - now))
        rows.append(Row(at[number], keep, latent, noise=added, clip=_clip(config)))
    return rows
