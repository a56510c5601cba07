"""Norms whose scale and shift a vector says: how transformers that denoise are told the time.

Peebles & Xie, 2022, "DiT" (adaLN-Zero).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import contract


def plain_norm(x: jax.Array, eps: float) -> jax.Array:
    """x [..., D] brought to mean 0 and variance 1 over D, in x's dtype; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)).astype(x.dtype)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array, eps: float = 1e-6) -> jax.Array:
    """plain_norm(x) * (1 + scale) + shift; x [B, T, D], the others [B, 1, D]."""
    return plain_norm(x, eps) * (1 + scale) + shift


class Modulation(nn.Module):
    """A vector to several, for shifts, scales and gates. Parameters kernel [in, count, D] and bias [count, D].

    Both start at zero, so that a block whose gates they are is the identity at first.

    Attributes:
        count, width: how many vectors come out, and their channels.
        dtype: compute dtype.
    """

    count: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, vector: jax.Array) -> tuple[jax.Array, ...]:
        """vector [B, in] -> `count` of [B, 1, D], linear in silu(vector)."""
        shape, axes = (vector.shape[-1], self.count, self.width), ("embed", "feature", "feature")

        def weight(name, shape, axes):
            init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            return self.param(name, init, shape).astype(self.dtype)

        parts = contract(jax.nn.silu(vector).astype(self.dtype), weight("kernel", shape, axes))
        parts = parts + weight("bias", shape[1:], axes[1:])
        return tuple(parts[:, number, None] for number in range(self.count))
