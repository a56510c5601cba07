"""Rows of media as grids of features, for projectors that look at where a feature stands.

An item is one grid, or several one after the other (frames); each becomes tokens by itself.
"""

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media

Grid = tuple[int, int]


def check_grid(where: str, grid: Grid) -> None:
    """Raises ConfigError unless both sides are at least 1."""
    if min(grid) < 1:
        raise ConfigError(f"{where} must have sides of at least 1, got {grid[0]} x {grid[1]}")


def count_grids(kind: str, grid: Grid, num_features: int, item_grid=None) -> int:
    """How many grids (height, width) an item of `num_features` features is.

    Args:
        kind: the projector's, for messages.
        grid: (height, width) that the config says.
        num_features: what the encoder gives of an item.
        item_grid: (time, height, width) of the item, where an encoder keeps native resolution.

    Raises:
        ConfigError: no whole number, or an item of another shape.
    """
    height, width = grid
    number, rest = divmod(num_features, height * width)
    if rest or not number:
        raise ConfigError(
            f"{kind} projector: {num_features} features are no whole number of {height} x {width} grids of "
            f"{height * width}"
        )
    if item_grid is not None and tuple(item_grid[1:]) != tuple(grid):
        raise ConfigError(
            f"{kind} projector: it takes grids of {height} x {width}, but the item has {item_grid[1]} x {item_grid[2]}"
        )
    return number


def split_grids(values: jax.Array, grid: Grid) -> jax.Array:
    """[B, K * h * w, C] -> [B * K, h, w, C].

    Raises:
        ValueError: no whole number of grids.
    """
    if values.shape[1] % (grid[0] * grid[1]):
        raise ValueError(f"{values.shape[1]} features are no whole number of {grid[0]} x {grid[1]} grids")
    return values.reshape(-1, *grid, values.shape[-1])


def join_grids(media: Media, values: jax.Array, grid: Grid) -> Media:
    """Tokens [B * K, M, D] of single grids -> stage "projected", [B, K * M, D].

    Tokens belong to the item that their grid belonged to; those of a grid that was padding are padding.
    """
    batch, length = media.values.shape[:2]
    segments = media.segment_ids
    if segments is not None:
        of_grid = jnp.asarray(segments).reshape(batch, -1, grid[0] * grid[1]).max(axis=-1)
        segments = jnp.repeat(of_grid, values.shape[1], axis=1)
    values = values.reshape(batch, length // (grid[0] * grid[1]) * values.shape[1], values.shape[-1])
    return media.replace(values=values, segment_ids=segments, stage="projected")
