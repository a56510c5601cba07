"""Latents cut into squares that are tokens, and put together again."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.distributed.rules import constrain
from mmjax.nn.full_conv import Conv
from mmjax.nn.sincos import sincos_2d


def patch_grid(x: jax.Array, channels: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a latent [B, h, w, channels].

    Raises:
        ValueError: another number of channels, or sides that are no multiple of the patch's.
    """
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"latents are {tuple(x.shape)}; wanted [B, h, w, {channels}]")
    if x.shape[1] % patch or x.shape[2] % patch:
        raise ValueError(f"latents of {x.shape[1]} x {x.shape[2]} places; sides must be multiples of {patch}")
    return x.shape[1] // patch, x.shape[2] // patch


def stretched_places(width: int, grid: tuple[int, int], base: int, stretch: float = 1.0) -> np.ndarray:
    """float32 [rows, columns, width]: sine positions that run from 0 to base / stretch however large the grid is."""
    rows, columns = (np.arange(count, dtype=np.float32) / (count / base) / stretch for count in grid)
    return sincos_2d(width, rows, columns)


class LatentPatches(nn.Module):
    """Each square to a token with its place added. Parameter proj.

    Attributes:
        width, patch: of a token, and a square's side.
        dtype: compute dtype.
    """

    width: int
    patch: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """x [B, h, w, C], places [rows, columns, D] -> [B, rows * columns, D]."""
        x = Conv(self.width, self.patch, self.patch, dtype=self.dtype, name="proj")(x)
        x = x + jnp.asarray(places, self.dtype)
        return constrain(x.reshape(x.shape[0], -1, self.width), "batch", "length", "act_embed")


def together(x: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Tokens [B, rows * columns, patch * patch * C], channels innermost -> [B, rows * patch, columns * patch, C]."""
    x = x.reshape(x.shape[0], *grid, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], grid[0] * patch, grid[1] * patch, -1)
