"""Point clouds cut into groups: points far apart from each other, and the neighbours of each.

Qi et al., 2017, "PointNet++" (farthest-point sampling and grouping).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.config import check_choice

STARTS = ("first", "farthest")


class Groups(NamedTuple):
    """G groups of K points each.

    Attributes:
        index: int32 [B, G, K], the members, nearest first.
        centers: float [B, G, 3], the points that the groups lie around.
        offsets: float [B, G, K, 3], the members seen from the centre.
        seen: bool [B, G], False for groups that a cloud has too few points for.
    """

    index: jax.Array
    centers: jax.Array
    offsets: jax.Array
    seen: jax.Array


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """[B, N, 3], [B, M, 3] -> [B, N, M], from differences: exactly 0 between equal points."""
    axes = (jnp.square(x[:, :, None, axis] - y[:, None, :, axis]) for axis in range(x.shape[-1]))
    return sum(axes)


def farthest_points(points: jax.Array, count: int, start: str = "first", mask: jax.Array | None = None) -> jax.Array:
    """Farthest-point sampling: each next point is the one farthest from all before it.

    Args:
        points: float [B, N, 3].
        count: how many to choose.
        start: the first of them: "first", the first that `mask` keeps; or "farthest", the one farthest from the
            mean, which does not depend on the order of the points.
        mask: bool [B, N], False for padding; None: all are points.

    Returns:
        int32 [B, count]. A cloud of fewer points has all of them first and repeats after that.

    Raises:
        ConfigError: no such start.
        ValueError: `count` is not in 1..N.
    """
    check_choice("start", start, STARTS)
    batch, number = points.shape[:2]
    if not 1 <= count <= number:
        raise ValueError(f"{count} points cannot be chosen from clouds of {number}")
    points = points.astype(jnp.float32)
    kept = jnp.ones((batch, number), bool) if mask is None else jnp.asarray(mask, bool)
    points = jnp.where(kept[..., None], points, 0)
    if start == "first":
        first = jnp.argmax(kept, axis=1)
    else:
        mean = jnp.sum(points, axis=1, keepdims=True) / jnp.maximum(jnp.sum(kept, axis=1), 1)[:, None, None]
        first = jnp.argmax(jnp.where(kept, squared_distances(mean, points)[:, 0], -1), axis=1)

    def step(carry, _):
        nearest, chosen = carry
        at = jnp.take_along_axis(points, chosen[:, None, None], axis=1)
        nearest = jnp.minimum(nearest, squared_distances(at, points)[:, 0])
        return (nearest, jnp.argmax(nearest, axis=1)), chosen

    # Padding is at no distance from anything, so that it is never the farthest.
    nearest = jnp.where(kept, jnp.inf, -1.0)
    _, chosen = jax.lax.scan(step, (nearest, first), length=count)
    return chosen.T.astype(jnp.int32)


def nearest_points(points: jax.Array, centers: jax.Array, count: int, mask: jax.Array | None = None) -> jax.Array:
    """The `count` points nearest to each centre, nearest first.

    Args:
        points: float [B, N, 3].
        centers: float [B, G, 3].
        count: K.
        mask: bool [B, N], False for padding; None: all are points.

    Returns:
        int32 [B, G, K]. Of clouds of fewer points, the nearest one stands again in the places that are over.

    Raises:
        ValueError: `count` is not in 1..N.
    """
    if not 1 <= count <= points.shape[1]:
        raise ValueError(f"{count} neighbours cannot be found in clouds of {points.shape[1]} points")
    away = squared_distances(centers.astype(jnp.float32), points.astype(jnp.float32))
    if mask is not None:
        away = jnp.where(jnp.asarray(mask, bool)[:, None], away, jnp.inf)
    away, index = jax.lax.top_k(-away, count)
    return jnp.where(jnp.isneginf(away), index[..., :1], index).astype(jnp.int32)


def group_points(
    points: jax.Array, groups: int, size: int, start: str = "first", mask: jax.Array | None = None
) -> Groups:
    """Clouds [B, N, 3] -> `groups` groups of `size` neighbours; the other arguments as in `farthest_points`."""
    points = points if mask is None else jnp.where(mask[..., None], points, 0)
    chosen = farthest_points(points, groups, start, mask)
    centers = jnp.take_along_axis(points, chosen[..., None], axis=1)
    index = nearest_points(points, centers, size, mask)
    offsets = gather_points(points, index) - centers[:, :, None]
    count = points.shape[1] if mask is None else jnp.sum(mask, axis=1, keepdims=True)
    seen = jnp.broadcast_to(jnp.arange(groups) < count, chosen.shape)
    return Groups(index, centers, offsets, seen)


def gather_points(values: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of [B, N, C] at [B, G, K] -> [B, G, K, C]."""
    return jax.vmap(lambda row, at: row[at])(values, index)
