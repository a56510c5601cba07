"""Residual block of two convolutions, with the time of diffusion where there is one (Ho et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.full_conv import Conv
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS
from mmjax.nn.spatial_norm import map_norm


class ResBlock(nn.Module):
    """Parameters norm_1, conv_1, norm_2, conv_2; time where `time` is given; shortcut where the channels change.

    Attributes:
        features: channels out.
        groups, eps: of the norms.
        activation: in front of each convolution and of the time's map.
        dtype: compute dtype.
    """

    features: int
    groups: int = 32
    eps: float = 1e-6
    activation: str = "silu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array | None = None, guide: jax.Array | None = None
    ) -> jax.Array:
        """x [B, h, w, C] -> [B, h, w, features], with perhaps the embedded time [B, D] and a guide of the norms."""
        act = ACTIVATIONS[self.activation]

        def norm(name, x):
            return map_norm(x, guide, self.groups, self.eps, self.dtype, name)

        h = Conv(self.features, padding=1, dtype=self.dtype, name="conv_1")(act(norm("norm_1", x)))
        if time is not None:
            linear = Linear((self.features,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name="time")
            h = h + linear(act(time))[:, None, None]
        h = Conv(self.features, padding=1, dtype=self.dtype, name="conv_2")(act(norm("norm_2", h)))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="shortcut")(x)
        return x + h
