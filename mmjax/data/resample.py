"""Samples brought from one rate to another, by a low-pass filter that is evaluated where it is needed only.

Crochiere & Rabiner, 1983, "Multirate Digital Signal Processing", chapter 3 (polyphase filters); the window is that of
Kaiser, 1974. The filter is the one of scipy.signal.resample_poly.
"""

import math

import numpy as np

# Zero crossings of the sinc on each side of its middle, and the shape of the window over them.
CROSSINGS = 10
KAISER_BETA = 5.0


def low_pass(up: int, down: int) -> np.ndarray:
    """The filter at the common multiple of both rates, float64 [2 * CROSSINGS * max(up, down) + 1]."""
    slower = max(up, down)
    half = CROSSINGS * slower
    taps = np.sinc(np.arange(-half, half + 1) / slower) * np.kaiser(2 * half + 1, KAISER_BETA)
    # Between two samples there are up - 1 zeros, hence the factor.
    return taps * (up / taps.sum())


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples [S] at `rate` -> float32 [ceil(S * new_rate / rate)] at `new_rate`; outside, there is silence.

    Raises:
        ValueError: rates that are not positive whole numbers, or samples that are not of one dimension.
    """
    if rate < 1 or new_rate < 1 or rate != int(rate) or new_rate != int(new_rate):
        raise ValueError(f"sampling rates must be positive whole numbers, got {rate} and {new_rate}")
    if samples.ndim != 1:
        raise ValueError(f"samples must have one dimension, got the shape {samples.shape}")
    rate, new_rate = int(rate), int(new_rate)
    divisor = math.gcd(rate, new_rate)
    up, down = new_rate // divisor, rate // divisor
    if up == down:
        return samples.astype(np.float32)
    taps = low_pass(up, down)
    half = len(taps) // 2
    reach = -(-len(taps) // up)
    # Taps of one phase stand in one row, the last one first, in the order of the samples that they meet.
    phases = np.concatenate([taps, np.zeros(reach * up - len(taps))]).reshape(reach, up)[::-1].T.astype(np.float32)
    length = -(-len(samples) * up // down)
    behind = (half + (length - 1) * down) // up + 1 if length else 0
    padded = np.pad(samples.astype(np.float32), (reach - 1, max(0, behind - len(samples))))
    out = np.empty(length, np.float32)
    # Outputs of one phase, every up-th, read windows that lie `down` samples apart.
    for first in range(min(up, length)):
        at, phase = divmod(half + first * down, up)
        count = -(-(length - first) // up)
        windows = np.lib.stride_tricks.sliding_window_view(padded[at:], reach)[::down][:count]
        out[first::up] = windows @ phases[phase]
    return out
