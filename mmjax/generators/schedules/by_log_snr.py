"""Samplers that are exact in the logarithm of the signal-to-noise ratio: DPM-Solver++ and UniPC."""

import math

import numpy as np

from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.predictions import clean
from mmjax.generators.schedules.steps import Y1, Y2, Y3, A, Row, X, Y
from mmjax.generators.schedules.times import spread, times, times_of, train_sigmas

# DPM-Solver++ with fewer steps than this ends with lower orders, for stability.
FEW_STEPS = 15


def log_snr_levels(config: ScheduleConfig, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times [steps]; alpha, sigma and lambda = log(alpha / sigma) [steps + 1]."""
    total = config.noise.train_steps
    if config.noise.flow:
        sigma = np.linspace(1, 1 / total, steps + 1)[:-1]
        if config.sampler != "unipc":
            sigma = 1 - np.linspace(1, 1 / total, steps + 1)[::-1][:-1]
        sigma = config.shift * sigma / (1 + (config.shift - 1) * sigma)
        # Where nothing of x_0 is left, lambda would be minus infinity.
        sigma = np.minimum(sigma, 1 - 1e-6)
        at = np.trunc(sigma * total)
        sigma = np.append(sigma, 0.0 if config.final_sigma_zero else sigma[-1])
        alpha = 1 - sigma
    else:
        trained = train_sigmas(config.noise)
        at = np.round(times(total, steps, config.spacing, config.offset, behind=True))
        ratio = np.interp(at, np.arange(total), trained)
        if config.sigmas != "train":
            ratio = spread(trained[-1], trained[0], steps, config.sigmas)
            at = times_of(ratio, trained)
            nearest = config.sigmas == "karras" and config.noise.betas != "squaredcos_cap_v2"
            at = np.round(at) if nearest else np.trunc(at)
        ratio = np.append(ratio, 0.0 if config.final_sigma_zero else trained[0])
        alpha = 1 / np.sqrt(ratio**2 + 1)
        sigma = ratio * alpha
    with np.errstate(divide="ignore"):
        return at, alpha, sigma, np.log(alpha) - np.log(sigma)


def dpm_solver(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Multistep, of order 1 to 3; with fresh noise for "sde_dpm_solver"."""
    at, alpha, sigma, log_snr = log_snr_levels(config, steps)
    noisy = config.sampler == "sde_dpm_solver"
    rows = []
    for number in range(start, steps):
        last = number == steps - 1
        few = config.lower_order_final and steps < FEW_STEPS
        order = min(config.order, number - start + 1)
        if last and (few or config.final_sigma_zero):
            order = 1
        elif number == steps - 2 and few:
            order = min(order, 2)
        h = log_snr[number + 1] - log_snr[number]
        # Of the stochastic equation everything decays twice as fast, and half of that is noise.
        twice = 2 * h if noisy else h
        share = -math.expm1(-twice)
        latent = sigma[number + 1] / sigma[number] * (math.exp(-h) if noisy else 1.0) * X
        latent = latent + alpha[number + 1] * share * Y
        if order > 1:
            r0 = (log_snr[number] - log_snr[number - 1]) / h
            slope = (Y - Y1) / r0
            if order == 3:
                r1 = (log_snr[number - 1] - log_snr[number - 2]) / h
                older = (Y1 - Y2) / r1
                bend = (slope - older) / (r0 + r1)
                slope = slope + r0 * bend
                latent = latent - alpha[number + 1] * ((twice - share) / twice**2 - 0.5) * bend
            first = 1 - share / twice
            if order == 2 and config.solver == "midpoint":
                first = share / 2
            latent = latent + alpha[number + 1] * first * slope
        added = sigma[number + 1] * math.sqrt(-math.expm1(-2 * h)) if noisy else 0.0
        keep = clean(config.noise.prediction, alpha[number], sigma[number])
        rows.append(Row(at[number], keep, latent, noise=added))
    return rows


def unipc(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """A predictor of order p, corrected at the next step by the prediction made there; A is the corrected latent."""
    at, alpha, sigma, log_snr = log_snr_levels(config, steps)
    rows, order = [], 0
    for number in range(start, steps):
        corrected = X
        if order:
            # In the frame of the step before: its prediction is Y1, and Y is that at where it arrived.
            corrected = _unified(config, alpha, sigma, log_snr, number - 1, order, A, (Y1, Y2, Y3), Y)
        left = steps - number if config.lower_order_final else config.order
        order = min(config.order, left, number - start + 1)
        latent = _unified(config, alpha, sigma, log_snr, number, order, corrected, (Y, Y1, Y2))
        keep = clean(config.noise.prediction, alpha[number], sigma[number])
        rows.append(Row(at[number], keep, latent, anchor=corrected))
    return rows


def _unified(config, alpha, sigma, log_snr, number, order, x, kept, arrived=None) -> np.ndarray:
    """From level `number` to the next one: the predictor, or the corrector if what was predicted there is given."""
    h = log_snr[number + 1] - log_snr[number]
    with np.errstate(invalid="ignore"):
        ratios = [(log_snr[number - back] - log_snr[number]) / h for back in range(1, order)]
    slopes = [(kept[back] - kept[0]) / ratios[back - 1] for back in range(1, order)]
    phi = math.expm1(-h)
    latent = sigma[number + 1] / sigma[number] * x - alpha[number + 1] * phi * kept[0]
    if arrived is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, arrived - kept[0]]
    if not slopes:
        return latent
    scale = -h if config.solver == "bh1" else phi
    wanted, term, factorial = [], phi / -h - 1, 1
    for power in range(1, len(slopes) + 1):
        wanted.append(term * factorial / scale)
        factorial *= power + 1
        term = term / -h - 1 / factorial
    weights = np.asarray([0.5])
    if len(slopes) > 1:
        weights = np.linalg.solve(np.asarray([np.asarray(ratios) ** power for power in range(len(slopes))]), wanted)
    return latent - alpha[number + 1] * scale * sum(w * slope for w, slope in zip(weights, slopes, strict=True))
