"""Normalisation of groups of channels over the whole map (Wu & He, 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
    """Every group of neighbouring channels of an item to mean 0 and variance 1; scale, bias [C].

    Attributes:
        groups: how many; the channels are a multiple of it.
        eps: added to the variance.
        dtype: compute dtype; statistics are in float32.
    """

    groups: int
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> the same.

        Raises:
            ValueError: channels that are no multiple of the groups.
        """
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels are no multiple of {self.groups} groups")

        def vector(name, init):
            return self.param(name, nn.with_logical_partitioning(init, ("feature",)), (channels,)).astype(jnp.float32)

        scale, bias = vector("scale", nn.initializers.ones), vector("bias", nn.initializers.zeros)
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, channels // self.groups)
        y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + self.eps)
        return (y.reshape(x.shape) * scale + bias).astype(self.dtype)
