"""Batch normalisation that does not look at its batch: by statistics that were collected in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class FixedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of the checkpoint (Ioffe & Szegedy, 2015): scale, bias, mean, var [D]."""

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> the same shape."""

        def vector(name, init):
            return self.param(name, nn.with_logical_partitioning(init, ("feature",)), x.shape[-1:]).astype(jnp.float32)

        scale, bias = vector("scale", nn.initializers.ones), vector("bias", nn.initializers.zeros)
        mean, var = vector("mean", nn.initializers.zeros), vector("var", nn.initializers.ones)
        factor = scale * jax.lax.rsqrt(var + self.eps)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)
