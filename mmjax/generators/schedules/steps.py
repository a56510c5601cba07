"""What every sampler is here: a table whose rows say what each evaluation of the denoiser is weighed with.

All samplers that the field uses are linear in what they hold: the latent x, the denoiser's prediction M, what was
kept of this and of earlier predictions (Y, then Y1, Y2, Y3), and one latent A put aside. So one compiled program runs
any of them, for any number of steps; the numbers are data. Where a sampler's formulas are written down, X, A, Y, M,
Y1, Y2 and Y3 are unit vectors, and a formula over them is its row of weights.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

X, A, Y, M, Y1, Y2, Y3 = np.eye(7)


class Row(NamedTuple):
    """One evaluation.

    Attributes:
        time: what the denoiser is told.
        keep: weights of X and M in what is kept of the prediction, [7], of which only those two are read.
        latent: weights of the next latent.
        anchor: weights of the latent put aside; by default it stays.
        scale: what the latent is multiplied with before the denoiser sees it.
        noise: how much fresh noise the next latent gets.
        clip: what is kept is clipped to -clip ... clip.
        push: whether what is kept becomes Y1 of the next row, and so on.
    """

    time: float
    keep: np.ndarray
    latent: np.ndarray
    anchor: np.ndarray = A
    scale: float = 1.0
    noise: float = 0.0
    clip: float = np.inf
    push: bool = True


class Steps(NamedTuple):
    """Rows as arrays, filled up with rows that are not run.

    Attributes:
        time, scale, noise, clip: float32 [S].
        keep: float32 [S, 2].
        latent, anchor: float32 [S, 7].
        push: bool [S].
        count: int32 scalar, how many rows are run.
        start: float32 scalar, what fresh noise is multiplied with to be the first latent.
    """

    time: Any
    scale: Any
    noise: Any
    clip: Any
    keep: Any
    latent: Any
    anchor: Any
    push: Any
    count: Any
    start: Any


def table(rows: list[Row], start: float, capacity: int | None = None) -> Steps:
    """Rows as `Steps` with room for `capacity` of them.

    Raises:
        ValueError: more rows than that.
    """
    count = len(rows)
    room = count if capacity is None else capacity
    if count > room:
        raise ValueError(f"{count} evaluations of the denoiser do not fit a program for {room}")
    columns = {
        name: np.asarray([getattr(row, name) for row in rows], np.float32)
        for name in ("time", "scale", "noise", "clip", "latent", "anchor")
    }
    columns["keep"] = np.asarray([[row.keep @ X, row.keep @ M] for row in rows], np.float32)
    columns["push"] = np.asarray([row.push for row in rows])
    filled = np.minimum(np.arange(room), count - 1)
    columns = {name: column[filled] for name, column in columns.items()}
    return Steps(**columns, count=np.int32(count), start=np.float32(start))


def read(steps: Steps, index: jax.Array) -> Steps:
    """The row `index` of every column."""
    columns = {name: getattr(steps, name)[index] for name in steps._fields if name not in ("count", "start")}
    return steps._replace(**columns)
