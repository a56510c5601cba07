"""Attention over the borders of tiles, in windows that are shifted by half a tile.

Liu et al., 2024, "TextMonkey": what was cut apart sees each other again. As in Swin (Liu et al., 2021) the map of all
tiles is rolled, and what only the roll brought together is kept apart. What a layer adds is scaled by factors that
start at zero, so that at first tiles are as without.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.encoders.swin import apart, map_of, windows_of
from mmjax.nn.attention import Attention
from mmjax.nn.norms import LayerNorm


def joined(tiles: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Features [B, tiles, side * side, D] of rows and columns of tiles -> a map [B, rows * side, columns * side, D]."""
    batch, _, length, width = tiles.shape
    (rows, columns), side = grid, round(length**0.5)
    x = tiles.reshape(batch, rows, columns, side, side, width).swapaxes(2, 3)
    return x.reshape(batch, rows * side, columns * side, width)


def parted(whole: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What `joined` put together, [B, tiles, side * side, D]."""
    (rows, columns), (batch, height, _, width) = grid, whole.shape
    side = height // rows
    x = whole.reshape(batch, rows, side, columns, side, width).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, side * side, width)


class AcrossTiles(nn.Module):
    """Layers x + scale * attention(windows of norm(x)); every second, from the first on, is shifted by half a tile.

    Attributes:
        width, num_heads: D, H.
        side: features of a side of a tile, and of a window.
        num_layers: how many.
        dtype: compute dtype.
    """

    width: int
    num_heads: int
    side: int
    num_layers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tiles: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Features [B, tiles, side * side, D] -> the same."""
        x = joined(tiles.astype(self.dtype), grid)
        for layer in range(self.num_layers):
            shift = 0 if layer % 2 else self.side // 2
            x = x + self._attended(x, shift, f"layer_{layer}")
        return parted(x, grid)

    def _attended(self, x: jax.Array, shift: int, name: str) -> Any:
        height, width = x.shape[1:3]
        y = LayerNorm(dtype=self.dtype, name=f"{name}_norm")(x)
        y = windows_of(jnp.roll(y, (-shift, -shift), axis=(1, 2)), self.side)
        mask = None
        if shift:
            seen = ~apart(height, width, self.side, shift)
            mask = jnp.asarray(np.tile(seen, (len(x), 1, 1)))
        heads = self.num_heads
        attention = Attention(self.width, heads, heads, self.width // heads, True, True, dtype=self.dtype, name=name)
        y = map_of(attention(y, mask)[0], self.side, height, width)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        gate = self.param(f"{name}_scale", zeros, (self.width,)).astype(self.dtype)
        return gate * jnp.roll(y, (shift, shift), axis=(1, 2))
