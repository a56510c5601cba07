"""A block that attends over time and over space one after the other (Bertasius et al., 2021, "TimeSformer")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.block import BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP


class DividedBlock(nn.Module):
    """x + time(x), then + space(norm(x)), then + mlp(norm(x)).

    Over time every patch sees itself in all frames, and the class token takes no part. Over space every frame sees
    its patches and the class token, to which the mean of what the frames say is added. Parameters time_norm,
    time_attn, time_out; attn_norm, attn, mlp_norm, mlp as in `Block`.

    Attributes:
        config: of both attentions and the MLP.
        dtype: compute dtype.
    """

    config: BlockConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, frames: int) -> jax.Array:
        """x [B, 1 + P * frames, D], the frames of each patch together -> the same."""
        c = self.config
        batch, width = x.shape[0], x.shape[-1]

        def attention(name):
            heads = c.num_heads, c.num_kv_heads, c.head_dim
            return Attention(width, *heads, c.qkv_bias, c.out_bias, dtype=self.dtype, name=name)

        def norm(name, x):
            return c.norms.module(self.dtype, name)(x)

        first, patches = x[:, :1], x[:, 1:].reshape(batch, -1, frames, width)
        count = patches.shape[1]
        h, _ = attention("time_attn")(norm("time_norm", patches).reshape(batch * count, frames, width))
        out = Linear((width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="time_out")
        patches = patches + out(h).reshape(patches.shape)

        of_frames = patches.swapaxes(1, 2).reshape(batch * frames, count, width)
        of_frames = jnp.concatenate([jnp.repeat(first, frames, axis=0), of_frames], axis=1)
        h, _ = attention("attn")(norm("attn_norm", of_frames))
        h = h.reshape(batch, frames, 1 + count, width)
        patches = patches + h[:, :, 1:].swapaxes(1, 2)
        x = jnp.concatenate([first + h[:, :, 0].mean(axis=1, keepdims=True), patches.reshape(batch, -1, width)], axis=1)
        x = constrain(x, "batch", "length", "act_embed")
        mlp = MLP(width, c.mlp_width, c.activation, c.gated, c.mlp_bias, dtype=self.dtype, name="mlp")
        return constrain(x + mlp(norm("mlp_norm", x)), "batch", "length", "act_embed")
