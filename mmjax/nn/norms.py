"""Root-mean-square and layer normalisation; statistics in float32 whatever the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich, 2019); scale [D].

    The normalised value is rounded to the compute dtype before the scale is applied, as Llama does.
    """

    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in `dtype`."""
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("feature",)), x.shape[-1:]
        )
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return x.astype(self.dtype) * scale.astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis (Ba et al., 2016); scale and bias [D]."""

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in `dtype`."""
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("feature",)), x.shape[-1:]
        )
        bias = self.param(
            "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("feature",)), x.shape[-1:]
        )
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.dtype)
