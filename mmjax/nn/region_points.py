"""Regions of any shape as points: drawn inside, their features read from a map, merged with their neighbours'.

You et al., 2023, "Ferret: Refer and ground anything anywhere at any granularity" (spatial-aware visual sampler).
Points are (row, column) as shares of the image's sides; M points of a region.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.points import farthest_points, gather_points, nearest_points

POOLS = ("mean", "max")


def points_inside(masks: jax.Array, count: int, rng: jax.Array | None = None) -> jax.Array:
    """Points of each region.

    Args:
        masks: [B, h, w], not 0 inside the region.
        count: M.
        rng: draws M different pixels, or, of a region that has fewer, all of them and some again. None: pixels at
            even distances in reading order.

    Returns:
        float32 [B, M, 2]. Of an empty region, the image's first pixel M times.
    """
    batch, height, width = masks.shape
    inside = masks.reshape(batch, -1) != 0
    ranks = jnp.cumsum(inside, axis=1)
    total = ranks[:, -1:]
    if rng is None:
        # count * total may not fit into an int32: the quotient and the rest, each times the place.
        place = jnp.arange(count)
        wanted = place * (total // count) + place * (total % count) // count
    else:
        first, second = jax.random.split(rng)
        order = jnp.where(inside, jax.random.uniform(first, inside.shape), -1.0)
        best = jax.lax.top_k(order, min(count, height * width))[1]
        best = jnp.pad(best, ((0, 0), (0, count - best.shape[1])))
        repeats = jax.random.randint(second, (batch, count), 0, jnp.maximum(total, 1))
        drawn = jnp.take_along_axis(ranks, best, axis=1) - 1
        wanted = jnp.where(jnp.arange(count) < total, drawn, repeats)
    find = jax.vmap(lambda line, rank: jnp.searchsorted(line, rank + 1))
    index = jnp.where(total > 0, find(ranks, wanted), 0)
    return jnp.stack([index // width / height, index % width / width], axis=-1).astype(jnp.float32)


def features_at(features: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of maps [B, H, W, C] at points [B, M, 2] -> [B, M, C] in the features' dtype.

    Points 0 and 1 are the centres of the first and the last cell, as Ferret has it.
    """
    batch, height, width, channels = features.shape
    rows, columns = points[..., 0] * (height - 1), points[..., 1] * (width - 1)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    flat = features.reshape(batch, height * width, channels)
    out = 0.0
    for row, down in _neighbours(rows, height):
        for column, right in _neighbours(columns, width):
            taken = jnp.take_along_axis(flat, (row * width + column)[..., None], axis=1)
            out += (down * right)[..., None] * taken.astype(jnp.float32)
    return out.astype(features.dtype)


def _neighbours(at: jax.Array, length: int) -> list[tuple[jax.Array, jax.Array]]:
    low = jnp.floor(at).astype(jnp.int32)
    return [(low, 1 - (at - low)), (jnp.minimum(low + 1, length - 1), at - low)]


class PointMerge(nn.Module):
    """Fewer points, each of which takes in its neighbours' features.

    Parameters: difference/{kernel, bias} [C + 2, C + 2], merge/{kernel, bias} [2 C + 4, C], norm.

    Attributes:
        points: how many are kept, those farthest apart from each other.
        neighbours: K, how many each takes in.
        pool: "mean" or "max" over neighbours.
        norm_eps: of the norm.
        dtype: compute dtype.
    """

    points: int
    neighbours: int
    pool: str = "mean"
    norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, points: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Points [B, M, 2] and features [B, M, C] -> those of `self.points` points.

        Raises:
            ConfigError: no such pool.
            ValueError: more points or neighbours wanted than there are.
        """
        check_choice("point merge pool", self.pool, POOLS)
        width = features.shape[-1]
        chosen = farthest_points(points, self.points)
        centers = jnp.take_along_axis(points, chosen[..., None], axis=1)
        near = nearest_points(points, centers, self.neighbours)
        x = jnp.concatenate([features.astype(self.dtype), points.astype(self.dtype)], axis=-1)
        anchors = gather_points(x, chosen[..., None])

        def linear(name, size):
            return Linear((size,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name=name)

        away = linear("difference", width + 2)(gather_points(x, near) - anchors)
        x = jnp.concatenate([away, jnp.broadcast_to(anchors, away.shape)], axis=-1)
        x = LayerNorm(self.norm_eps, self.dtype, name="norm")(jax.nn.relu(linear("merge", width)(x)))
        if self.pool == "mean":
            return centers, x.mean(axis=2)
        # The gradient of jnp.max looks for the maximum again by equality, and divides by nothing where a compiler
        # computed x twice with different roundings.
        best = jnp.argmax(x, axis=2, keepdims=True)
        return centers, jnp.take_along_axis(x, best, axis=2)[:, :, 0]
