"""The transformer block of DINOv2 and InternViT: a learned scale on each channel of what both halves add.

Touvron et al., 2021, "Going deeper with image transformers" (layer scale).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.block import BlockConfig
from mmjax.nn.mlp import MLP


class ScaledBlock(nn.Module):
    """x + attn_scale * attn(norm(x)), then x + mlp_scale * mlp(norm(x)); parameters as `Block` and two scales [D].

    Attributes:
        config: sizes and options.
        initial: value at which every scale starts.
        dtype: compute dtype.
    """

    config: BlockConfig
    initial: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, cache: None = None
    ) -> tuple[jax.Array, None]:
        """x [B, T, D], mask as in `Attention` -> ([B, T, D], None): there is no cache."""
        c = self.config
        attn = Attention(
            c.width,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            c.qkv_bias,
            c.out_bias,
            c.lora,
            self.dtype,
            c.norms if c.qk_norm else None,
            joint_qk_norm=c.joint_qk_norm,
            name="attn",
        )
        mlp = MLP(c.width, c.mlp_width, c.activation, c.gated, c.mlp_bias, c.lora, self.dtype, name="mlp")

        def scale(name):
            init = nn.with_logical_partitioning(nn.initializers.constant(self.initial), ("feature",))
            return self.param(name, init, (c.width,)).astype(self.dtype)

        h, _ = attn(c.norms.module(self.dtype, "attn_norm")(x), mask)
        x = constrain(x + scale("attn_scale") * h, "batch", "length", "act_embed")
        h = mlp(c.norms.module(self.dtype, "mlp_norm")(x))
        return constrain(x + scale("mlp_scale") * h, "batch", "length", "act_embed"), cache
