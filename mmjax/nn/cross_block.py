"""The block of encoder-decoder transformers: pre-norm or post-norm, with cross-attention where it decodes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, LayerCache
from mmjax.nn.block import BlockConfig
from mmjax.nn.mlp import MLP


class CrossBlock(nn.Module):
    """Self-attention, cross-attention if asked, MLP: each x + f(norm(x)), or with `post_norm` norm(x + f(x)).

    Post-norm is the order of the first transformer (Vaswani et al., 2017), of BERT, BART and wav2vec 2.0.

    Attributes:
        config: sizes and options; of these, rotary positions, parallel halves and second norms are not for here.
        post_norm: whether sums are normalised, not what goes into the halves.
        cross: whether the block has cross-attention.
        dtype: compute dtype.
    """

    config: BlockConfig
    post_norm: bool = False
    cross: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        sizes = c.width, c.num_heads, c.num_kv_heads, c.head_dim, c.qkv_bias, c.out_bias, c.lora, self.dtype
        attention = lambda: Attention(*sizes, scale=c.attention_scale, cap=c.attention_cap)
        self.attn, self.attn_norm = attention(), c.norms.module(self.dtype)
        if self.cross:
            self.cross_attn, self.cross_norm = attention(), c.norms.module(self.dtype)
        self.mlp = MLP(c.width, c.mlp_width, c.activation, c.gated, c.mlp_bias, c.lora, self.dtype)
        self.mlp_norm = c.norms.module(self.dtype)

    def keys(self, memory: jax.Array) -> LayerCache:
        """Keys and values of the cross-attention for memory [B, S, D]."""
        return self.cross_attn.keys(memory)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        cache: LayerCache | None = None,
        cache_index: jax.Array | int = 0,
        keys: LayerCache | None = None,
        memory_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> ([B, T, D], cache).

        Args:
            mask, bias, cache, cache_index: of the self-attention, see `Attention`.
            keys: of the memory, as `keys` gives them; needed where there is cross-attention.
            memory_mask: bool, broadcastable to [B, T, S].
        """
        h, cache = self.attn(self._before(self.attn_norm, x), mask, None, cache, cache_index, bias=bias)
        x = self._after(self.attn_norm, x, h)
        if self.cross:
            keys = self.keys(x) if self.is_initializing() else keys
            h = self.cross_attn.cross(self._before(self.cross_norm, x), keys, memory_mask)
            x = self._after(self.cross_norm, x, h)
        return self._after(self.mlp_norm, x, self.mlp(self._before(self.mlp_norm, x))), cache

    def _before(self, norm: nn.Module, x: jax.Array) -> jax.Array:
        return x if self.post_norm else norm(x)

    def _after(self, norm: nn.Module, x: jax.Array, h: jax.Array) -> jax.Array:
        x = constrain(x + h, "batch", "length", "act_embed")
        return norm(x) if self.post_norm else x
