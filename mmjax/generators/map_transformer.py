"""Transformers over the places of a map, or one place through a video, that read a condition: what stands between a
UNet's convolutions.

Rombach et al., 2022; Wang et al., 2023, "ModelScope".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.group_norm import GroupNorm
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

GROUP_EPS, NORM_EPS = 1e-6, 1e-5


class ConditionedBlock(nn.Module):
    """Self-attention, attention to a condition, MLP with a gelu gate, each x + f(norm(x)).

    Parameters attn_norm, attn, cross_norm, cross, mlp_norm, mlp.
    """

    width: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None, mask: jax.Array | None = None) -> jax.Array:
        """x [B, P, D], condition [B, N, C] and bool mask [B, N] -> [B, P, D]; without a condition x reads itself."""

        def norm(name):
            return LayerNorm(NORM_EPS, self.dtype, name=name)

        def attention(name):
            heads = self.num_heads
            return Attention(self.width, heads, heads, self.width // heads, out_bias=True, dtype=self.dtype, name=name)

        x = x + attention("attn")(norm("attn_norm")(x))[0]
        mask = None if mask is None else mask[:, None]
        x = x + attention("cross")(norm("cross_norm")(x), mask, source=condition)[0]
        mlp = MLP(self.width, 4 * self.width, "gelu", gated=True, use_bias=True, dtype=self.dtype, name="mlp")
        return constrain(x + mlp(norm("mlp_norm")(x)), "batch", "length", "act_embed")


class MapTransformer(nn.Module):
    """Parameters norm, proj_in, blocks [L, ...], proj_out.

    Attributes:
        num_heads, num_layers: of the blocks.
        groups: of the norm.
        context_width: channels of the condition; None: there is none, and blocks read the map itself.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
        width: channels of the blocks; None: they are as wide as the map.
        through_time: whether a place of a video sees itself in all frames, and not the places of its map.
    """

    num_heads: int
    num_layers: int
    groups: int
    context_width: int | None
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    width: int | None = None
    through_time: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None, mask: jax.Array | None = None) -> jax.Array:
        """x [B, h, w, D] -> the same; condition and mask as in `ConditionedBlock`.

        With `through_time` x is [B, T, h, w, D], normalised over all of its frames.
        """
        batch, channels = x.shape[0], x.shape[-1]
        width = self.width or channels

        def linear(name, features):
            return Linear((features,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name=name)

        block = ConditionedBlock(width, self.num_heads, self.dtype, parent=None)
        context = self.context_width
        dummy = None if context is None else jnp.zeros((1, 1, context), self.dtype)
        if self.is_initializing():
            init = init_stack(block, self.num_layers, jnp.zeros((1, 1, width), self.dtype), dummy)
            blocks = nn.unbox(self.param("blocks", init))
        else:
            blocks = self.get_variable("params", "blocks")
        h = GroupNorm(self.groups, GROUP_EPS, self.dtype, name="norm")(x)
        if self.through_time:
            h = h.reshape(batch, x.shape[1], -1, channels).swapaxes(1, 2).reshape(-1, x.shape[1], channels)
        h = linear("proj_in", width)(h.reshape(h.shape[0], -1, channels))
        given = None if context is None else condition.astype(self.dtype)

        def apply(layer, h, cache):
            return block.apply({"params": layer}, h, given, None if context is None else mask), cache

        h, _ = run_stack(apply, blocks, h, remat=self.remat)
        h = linear("proj_out", channels)(h)
        if self.through_time:
            h = h.reshape(batch, -1, x.shape[1], channels).swapaxes(1, 2)
        return x + h.reshape(x.shape)
