"""From samples to frames: the convolutions that wav2vec 2.0 and its kin have before and beside their blocks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.batch_norm import FixedBatchNorm
from mmjax.nn.linear import fan_in_normal
from mmjax.nn.mlp import ACTIVATIONS
from mmjax.nn.norms import LayerNorm

# Of the norms between convolutions, whatever the blocks have.
CONV_NORM_EPS = 1e-5
CONV_NORMS = ("none", "channel", "layer")
POSITION_NORMS = ("weight", "batch")


def frames_of(samples: Any, kernels: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """How many frames unpadded convolutions leave of `samples`, an int or an int array; below 1 for too few."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """x [B, T, in] with kernel [size, in / groups, out] -> [B, (T + 2 * padding - size) // stride + 1, out]."""
    dimensions = ("NWC", "WIO", "NWC")
    sides = ((padding, padding),)
    return jax.lax.conv_general_dilated(x, kernel, (stride,), sides, None, None, dimensions, groups)


class ChannelNorm(nn.Module):
    """Every channel to mean 0 and variance 1 over time, that is group normalisation (Wu & He, 2018) with a group a
    channel; scale, bias [C]. Frames of padding count as all others."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> the same."""

        def vector(name, init):
            return self.param(name, nn.with_logical_partitioning(init, ("feature",)), x.shape[-1:]).astype(jnp.float32)

        scale, bias = vector("scale", nn.initializers.ones), vector("bias", nn.initializers.zeros)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + CONV_NORM_EPS)
        return (x * scale + bias).astype(self.dtype)


class FrameConv(nn.Module):
    """act(norm(convolution)), unpadded. Parameters kernel [size, in, out], bias [out], norm/{scale, bias}.

    Attributes:
        features, size, stride: channels out, frames of a window, frames from one window to the next.
        activation: a name of `ACTIVATIONS`.
        norm: one of CONV_NORMS: none, of every channel over time, or of every frame over its channels.
        use_bias: whether the convolution has a bias.
        dtype: compute dtype.
    """

    features: int
    size: int
    stride: int
    activation: str
    norm: str = "none"
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, in] -> [B, (T - size) // stride + 1, features]."""
        shape = (self.size, x.shape[-1], self.features)
        init = nn.with_logical_partitioning(fan_in_normal(shape[:2]), ("patch", None, "embed"))
        x = convolve(x.astype(self.dtype), self.param("kernel", init, shape).astype(self.dtype), self.stride)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
            x = x + self.param("bias", zeros, (self.features,)).astype(self.dtype)
        if self.norm == "channel":
            x = ChannelNorm(self.dtype, name="norm")(x)
        elif self.norm == "layer":
            x = LayerNorm(CONV_NORM_EPS, self.dtype, name="norm")(x)
        return ACTIVATIONS[self.activation](x)


class ConvPositions(nn.Module):
    """Relative positions out of a wide grouped convolution: act(convolution).

    With norm "weight" the kernel is `gain` times `kernel` over its length, place by place of the window (weight
    normalisation, Salimans & Kingma, 2016); with "batch" x goes through `norm` first, with fixed statistics.

    Parameters kernel [size, D / groups, D], bias [D], gain [size], norm/{scale, bias, mean, var} [D].

    Attributes:
        size, groups: frames of a window; groups of channels that do not see each other.
        activation: a name of `ACTIVATIONS`.
        norm: one of POSITION_NORMS.
        dtype: compute dtype.
    """

    size: int
    groups: int
    activation: str
    norm: str = "weight"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> what is added to it, [B, T, D]."""
        length, width = x.shape[1:]
        shape = (self.size, width // self.groups, width)
        init = nn.with_logical_partitioning(fan_in_normal(shape[:2]), ("patch", None, "embed"))
        kernel = self.param("kernel", init, shape).astype(jnp.float32)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (width,)).astype(self.dtype)
        if self.norm == "batch":
            x = FixedBatchNorm(dtype=self.dtype, name="norm")(x)
        else:
            square = jnp.sum(jnp.square(kernel), axis=(1, 2))
            # The length that a kernel is drawn with, about.
            drawn = nn.with_logical_partitioning(nn.initializers.constant((width / self.size) ** 0.5), ("patch",))
            gain = self.param("gain", drawn, (self.size,)).astype(jnp.float32)
            kernel = kernel * (gain * jax.lax.rsqrt(square))[:, None, None]
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), 1, self.size // 2, self.groups)
        # A window of even size has a frame too many.
        return ACTIVATIONS[self.activation](x[:, :length] + bias)
