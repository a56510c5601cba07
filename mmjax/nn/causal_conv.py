"""Convolution of videos that looks back in time, never ahead (Yu et al., 2023, "MAGVIT-v2")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.full_conv import channels_axis
from mmjax.nn.linear import fan_in_normal


class CausalConv(nn.Module):
    """Zeros stand before the first frame and around every frame. Parameters kernel [*window, in, features] and bias.

    Attributes:
        features: channels out.
        window, stride: places of a window and its steps, of time, height and width.
        dtype: compute dtype.
    """

    features: int
    window: tuple[int, int, int] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, h, w, in] -> [B, T / stride, h / stride, w / stride, features], where these are whole."""
        shape = (*self.window, x.shape[-1], self.features)
        axes = ("patch", "patch", "patch", "feature", channels_axis(self.features))
        init = nn.with_logical_partitioning(fan_in_normal(shape[:4]), axes)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:])
        over = [size - step for size, step in zip(self.window, self.stride, strict=True)]
        # Of an odd number of zeros the one more stands in front.
        around = [(count - count // 2, count // 2) for count in over[1:]]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.param("kernel", init, shape).astype(self.dtype),
            self.stride,
            ((over[0], 0), *around),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
