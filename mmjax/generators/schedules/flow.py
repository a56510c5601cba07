"""Euler's method along straight lines from noise to x_0 (rectified flow; Liu et al., 2023; Esser et al., 2024)."""

import numpy as np

from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import M, Row, X


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """Noise levels moved towards 1, as larger images want."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_euler(config: ScheduleConfig, steps: int, start: int) -> list[Row]:
    """Even steps in the unshifted level."""
    total = config.noise.train_steps
    ends = shifted(np.asarray([1.0, 1 / total]), config.shift)
    sigmas = np.append(shifted(np.linspace(*ends, steps), config.shift), 0.0)
    return [
        Row(now * total, X - now * M, X + (to - now) * M)
        for now, to in zip(sigmas[start:], sigmas[start + 1 :], strict=False)
    ]
