"""Normalisation that a second map scales and shifts place by place (Zheng et al., 2022, "MoVQ")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.full_conv import Conv
from mmjax.nn.group_norm import GroupNorm
from mmjax.nn.resize import risen


class SpatialNorm(nn.Module):
    """GroupNorm(x) * scale(guide) + shift(guide). Parameters norm, scale, shift.

    Attributes:
        groups, eps: of the norm.
        dtype: compute dtype.
    """

    groups: int
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, guide: jax.Array) -> jax.Array:
        """x [B, h, w, C] and a guide [B, h', w', G], brought to x's places by the nearest -> [B, h, w, C]."""
        guide = risen(guide, x.shape[1:3])

        def read(name):
            return Conv(x.shape[-1], 1, dtype=self.dtype, name=name)(guide)

        return GroupNorm(self.groups, self.eps, self.dtype, name="norm")(x) * read("scale") + read("shift")


def map_norm(x: jax.Array, guide: jax.Array | None, groups: int, eps: float, dtype: jnp.dtype, name: str) -> jax.Array:
    """x [B, h, w, C] normalised by a module called `name`: a SpatialNorm where there is a guide, else a GroupNorm."""
    if guide is None:
        return GroupNorm(groups, eps, dtype, name=name)(x)
    return SpatialNorm(groups, eps, dtype, name=name)(x, guide)
