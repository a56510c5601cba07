"""Root-mean-square and layer normalisation; statistics in float32 whatever the compute dtype."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich, 2019); scale [D].

    The normalised value is rounded to the compute dtype before the scale is applied, as Llama does. With
    `offset`, the factor is `offset + scale` and is applied in float32, as Gemma does.
    """

    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in `dtype`."""
        init = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", nn.with_logical_partitioning(init, ("feature",)), x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        if self.offset:
            return (x * (self.offset + scale.astype(jnp.float32))).astype(self.dtype)
        return x.astype(self.dtype) * scale.astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis (Ba et al., 2016); scale [D], and bias [D] if it is used.

    With `per_head`, of x [..., H, D], every head has its own: scale and bias are [H, D] (Chameleon Team, 2024).
    """

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    per_head: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in `dtype`."""
        shape, axes = (x.shape[-2:], ("feature",) * 2) if self.per_head else (x.shape[-1:], ("feature",))
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, axes), shape)
        bias = jnp.zeros(())
        if self.use_bias:
            bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.dtype)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Which normalisation a block has.

    Attributes:
        kind: "rms" or "layer".
        eps: added to the mean square or variance.
        offset: added to the scale of an "rms" norm.
        bias: whether a "layer" norm has a bias.
        per_head: whether every head has a "layer" norm's scale and bias for itself.
    """

    kind: str
    eps: float
    offset: float = 0.0
    bias: bool = True
    per_head: bool = False

    def __post_init__(self):
        check_choice("norm", self.kind, tuple(NORMS))

    def module(self, dtype: jnp.dtype, name: str | None = None) -> nn.Module:
        """The norm as a module, to be called with x [..., D]."""
        if self.kind == "rms":
            return RMSNorm(self.eps, dtype, self.offset, name=name)
        return LayerNorm(self.eps, dtype, self.bias, self.per_head, name=name)
