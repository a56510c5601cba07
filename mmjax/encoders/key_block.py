"""The pre-norm block whose attention may have one learned key and value besides its tokens', with stochastic depth.

Girdhar et al., 2023 (ImageBind).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.block import BlockConfig
from mmjax.nn.drop_path import drop_path
from mmjax.nn.mlp import MLP


class KeyBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)); parameters as in `Block`, and extra_key, extra_value [H, C]."""

    config: BlockConfig
    extra_key: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, drop: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """x [B, T, D] -> [B, T, D].

        Args:
            drop: probability that what a half adds is left out, and the rng for it; None leaves nothing out.
        """
        c = self.config
        attn = Attention(
            c.width, c.num_heads, c.num_kv_heads, c.head_dim, c.qkv_bias, c.out_bias, c.lora, self.dtype, name="attn"
        )
        mlp = MLP(c.width, c.mlp_width, c.activation, c.gated, c.mlp_bias, c.lora, self.dtype, name="mlp")
        rate, rngs = (0.0, (None, None)) if drop is None else (drop[0], jax.random.split(drop[1]))

        def thinned(x, rng):
            return x if rng is None else drop_path(x, rate, rng)

        h = c.norms.module(self.dtype, "attn_norm")(x)
        keys = attn.keys(h)
        if self.extra_key:
            init = nn.with_logical_partitioning(nn.initializers.xavier_normal(), ("kv_heads", "head_dim"))
            shape = (c.num_kv_heads, c.head_dim)
            # What torch's attention calls bias_k and bias_v stands behind the tokens' own.
            extra = (self.param(name, init, shape) for name in ("extra_key", "extra_value"))
            keys = tuple(
                jnp.concatenate(
                    [own, jnp.broadcast_to(one[:, None].astype(own.dtype), (*own.shape[:2], 1, c.head_dim))], axis=2
                )
                for own, one in zip(keys, extra, strict=True)
            )
        x = constrain(x + thinned(attn.cross(h, keys), rngs[0]), "batch", "length", "act_embed")
        h = mlp(c.norms.module(self.dtype, "mlp_norm")(x))
        return constrain(x + thinned(h, rngs[1]), "batch", "length", "act_embed")
