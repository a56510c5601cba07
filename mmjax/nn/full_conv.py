"""Convolution of maps over all channels; of each channel by itself, see `mmjax.nn.conv`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import fan_in_normal

# What widths are multiples of that are split over a mesh; the few channels of pixels and latents are kept whole.
SPLIT = 64


def channels_axis(features: int) -> str | None:
    """The logical axis of a convolution's channels out."""
    return None if features % SPLIT else "embed"


class Conv(nn.Module):
    """A convolution with a square window. Parameters kernel [size, size, in, features] and bias [features].

    Attributes:
        features: channels out.
        size, stride, padding: of the window, its steps, and zeros on every side.
        use_bias: whether a bias is added.
        dtype: compute dtype.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, in] -> [B, (h + 2 padding - size) // stride + 1, ..., features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        axes = ("patch", "patch", "feature", channels_axis(self.features))
        init = nn.with_logical_partitioning(fan_in_normal(shape[:3]), axes)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.param("kernel", init, shape).astype(self.dtype),
            (self.stride, self.stride),
            ((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:])
            y = y + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        return y
