"""Schedules: a sampler's config and a number of steps to the table that `mmjax.generators.sampling` runs."""

import numpy as np

from mmjax.generators.noise import alphas_cumprod
from mmjax.generators.schedules.by_log_snr import dpm_solver, log_snr_levels, unipc
from mmjax.generators.schedules.by_sigma import euler, euler_ancestral, first_sigma, heun
from mmjax.generators.schedules.by_time import ddim, ddpm, lcm, pndm
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.flow import flow_euler
from mmjax.generators.schedules.steps import Row, Steps, table

# The one place where a sampler's name meets its formulas.
ROWS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "lcm": lcm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_solver": dpm_solver,
    "sde_dpm_solver": dpm_solver,
    "unipc": unipc,
    "flow_euler": flow_euler,
}
# Those whose latents are x_0 + sigma noise, and those whose levels lie between the times that they tell the denoiser.
SCALED = ("euler", "euler_ancestral", "heun")
EXACT = ("dpm_solver", "sde_dpm_solver", "unipc")


def make_steps(config: ScheduleConfig, steps: int, start: int = 0, capacity: int | None = None) -> Steps:
    """The table of a sampler.

    Args:
        config: the sampler.
        steps: how many steps a whole run has.
        start: how many of them are left out at the noisy end (image to image); samplers with a memory begin anew.
        capacity: rows that the program is compiled for; as many as there are if None.

    Raises:
        ValueError: steps below 1, more than there are times, or a start that is not one of them.
    """
    if not 1 <= steps <= config.noise.train_steps:
        raise ValueError(f"steps must be from 1 to {config.noise.train_steps}, got {steps}")
    if not 0 <= start < steps:
        raise ValueError(f"start must be from 0 to {steps - 1}, got {start}")
    rows = ROWS[config.sampler](config, steps, start)
    first = first_sigma(config, steps) if config.sampler in SCALED else 1.0
    return table(rows, first, capacity)


def levels_at(config: ScheduleConfig, steps: int, start: int) -> tuple[float, float]:
    """(alpha, sigma) of the latent alpha x_0 + sigma noise that the step `start` begins with.

    What an image is noised with to go on from there; of samplers by noise level alpha is 1.
    """
    alpha, sigma = row_levels(config, steps, start)[0]
    return float(alpha), float(sigma)


def row_levels(config: ScheduleConfig, steps: int, start: int = 0, capacity: int | None = None) -> np.ndarray:
    """float32 [rows, 2]: `levels_at` of every row that `make_steps` gives for the same arguments, its rows in order.

    Behind the last of them stands what a clean latent has, (1, 0).
    """
    rows = make_steps(config, steps, start)
    count = int(rows.count)
    if config.sampler in SCALED:
        found = [(1.0, _sigma(row)) for row in ROWS[config.sampler](config, steps, start)]
    elif config.sampler in EXACT:
        _, alpha, sigma, _ = log_snr_levels(config, steps)
        found = list(zip(alpha[start:-1], sigma[start:-1], strict=True))
    elif config.noise.flow:
        found = [(1 - time, time) for time in rows.time / config.noise.train_steps]
    else:
        share = np.interp(rows.time, np.arange(config.noise.train_steps), alphas_cumprod(config.noise))
        found = [(part**0.5, (1 - part) ** 0.5) for part in share]
    room = count + 1 if capacity is None else capacity + 1
    return np.asarray([*found, *[(1.0, 0.0)] * (room - count)], np.float32)


def _sigma(row: Row) -> float:
    return max(1 / row.scale**2 - 1, 0.0) ** 0.5
