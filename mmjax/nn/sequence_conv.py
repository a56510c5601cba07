"""Convolution along one axis: time, or the frames of a video; of maps see `mmjax.nn.full_conv`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.full_conv import channels_axis
from mmjax.nn.linear import fan_in_normal


class SequenceConv(nn.Module):
    """A convolution of sequences with odd windows, as long as before. Parameters kernel [size, in, features], bias.

    Attributes:
        features: channels out.
        size: places of a window; zeros stand beyond both ends.
        dilation: steps from one place of a window to the next.
        dtype: compute dtype.
    """

    features: int
    size: int = 3
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, ..., in] -> [B, T, ..., features]; places on the axes between do not see each other."""
        shape = (self.size, x.shape[-1], self.features)
        axes = ("patch", "feature", channels_axis(self.features))
        init = nn.with_logical_partitioning(fan_in_normal(shape[:2]), axes)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:])
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        side = self.dilation * (self.size - 1) // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype).reshape(*x.shape[:2], -1, x.shape[-1]),
            kernel[:, None],
            (1, 1),
            ((side, side), (0, 0)),
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return (y + bias).reshape(*x.shape[:-1], self.features)
