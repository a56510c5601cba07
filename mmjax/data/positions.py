"""Positions with an axis for time, height and width, for rotary embeddings of several axes, in numpy.

Wang et al., 2024, "Qwen2-VL": a token of text has its place on all axes alike; those of an item count on from the text
before it along their own axis, and the text behind goes on after the larger of height and width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """Where an item's tokens stand: from `start` on, time * height * width of them; `step` positions a unit of time."""

    start: int
    grid: tuple[int, int, int]
    step: float = 1.0


def axis_positions(valid: np.ndarray, runs: Sequence[Run]) -> np.ndarray:
    """int32 [T, 3] for one row of text.

    Args:
        valid: bool [T], what is no padding; padding has position 0.
        runs: the items of the row, in order.

    Raises:
        ValueError: runs that overlap or go beyond the row.
    """
    positions = np.zeros((len(valid), 3), np.int64)
    at, place = 0, 0

    def text(until):
        nonlocal place
        counted = np.cumsum(valid[at:until])
        positions[at:until] = np.where(valid[at:until], place + counted - 1, 0)[:, None]
        place += int(counted[-1]) if until > at else 0

    for run in runs:
        time, height, width = (int(side) for side in run.grid)
        end = run.start + time * height * width
        if run.start < at or end > len(valid):
            raise ValueError(f"an item of {run.grid} tokens at {run.start} does not fit between {at} and {len(valid)}")
        text(run.start)
        axes = np.indices((time, height, width)).reshape(3, -1).T
        # In the precision in which published models round down.
        axes[:, 0] = (axes[:, 0].astype(np.float32) * np.float32(run.step)).astype(np.int64)
        positions[run.start : end] = place + axes
        place += max(height, width)
        at = end
    text(len(valid))
    return positions.astype(np.int32)
