"""Attention pooling: all tokens of an image to one vector.

Lee et al., 2019, "Set Transformer" (pooling by multi-head attention); Zhai et al., 2023 (SigLIP).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.attention import Attention
from mmjax.nn.block import BlockConfig
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm


class AttentionPool(nn.Module):
    """SigLIP's pooling: a learned probe attends to all tokens, then a residual MLP.

    Attributes:
        config: sizes, as those of a block.
        dtype: compute dtype.
    """

    config: BlockConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, N, D], with mask bool [B, 1, N] of the tokens that count -> [B, D]."""
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        probe = self.param("probe", init, (1, c.width)).astype(self.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, c.width))
        attn = Attention(
            c.width, c.num_heads, c.num_heads, c.head_dim, True, True, dtype=self.dtype, name="attn"
        )
        x, _ = attn(probe, mask, source=x)
        h = LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
        x = x + MLP(c.width, c.mlp_width, c.activation, use_bias=True, dtype=self.dtype, name="mlp")(h)
        return x[:, 0]
