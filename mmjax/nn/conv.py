"""The convolutional parts that projectors share; maps of single positions (1 x 1) are `Linear`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import Linear, fan_in_normal


class DepthwiseConv(nn.Module):
    """Convolution of each channel by itself, padded with zeros by half the window (odd sizes).

    Parameters kernel [size, size, 1, C] and bias [C].
    """

    size: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), C]."""
        channels = x.shape[-1]
        init = nn.with_logical_partitioning(fan_in_normal((self.size, self.size)), ("patch", "patch", None, "embed"))
        kernel = self.param("kernel", init, (self.size, self.size, 1, channels))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((self.size // 2, self.size // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        if self.use_bias:
            bias = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
            y = y + self.param("bias", bias, (channels,)).astype(self.dtype)
        return y


class SqueezeExcite(nn.Module):
    """Channels weighted by what a small MLP makes of their means (Hu et al., 2018). fc1, fc2 {kernel, bias}."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> the same."""
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
        fc1 = Linear((self.hidden,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name="fc1")
        fc2 = Linear((x.shape[-1],), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="fc2")
        return x * self.gate(fc2(self.activation(fc1(mean))))
