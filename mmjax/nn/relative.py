"""Relative positions by buckets: attention's logits learn what a distance is worth (Raffel et al., 2020, "T5")."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def relative_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """int32 [2 * max_distance + 1]: the bucket of a key that stands d tokens before its query, at max_distance + d.

    Half of the buckets are for one distance each, the others grow logarithmically up to `max_distance`, beyond
    which all is one. With `bidirectional` later keys have the second half of all buckets; without, they share
    bucket 0 with the token itself.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance < 0, num_buckets, 0)
        distance = np.abs(distance)
    distance = np.maximum(distance, 0)
    exact = num_buckets // 2
    # In float32, as every implementation computes it: which side of a border a distance falls on depends on it.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(np.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + steps.astype(np.int32), num_buckets - 1)
    return (offset + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativeBias(nn.Module):
    """What is added to attention's logits, by head and bucket; embedding [buckets, H]."""

    num_heads: int
    num_buckets: int
    max_distance: int
    bidirectional: bool

    @nn.compact
    def __call__(self, distances: jax.Array) -> jax.Array:
        """int [B, T, S], how many tokens before query i stands key j -> float32 [B, H, T, S]."""
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "heads"))
        table = self.param("embedding", init, (self.num_buckets, self.num_heads))
        buckets = relative_buckets(self.num_buckets, self.max_distance, self.bidirectional)
        worth = table.astype(jnp.float32)[buckets].T
        most = self.max_distance
        return jnp.moveaxis(worth[:, jnp.clip(distances, -most, most) + most], 0, 1)
