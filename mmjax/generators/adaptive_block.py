"""The block of DiT and PixArt: attention and an MLP that are told by vectors how to see and how much to say.

Peebles & Xie, 2022, "DiT"; with a condition that is read in between, Chen et al., 2023, "PixArt-alpha".
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import modulated


class AdaptiveBlock(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift) for f attention, then for f the MLP. Parameters attn, cross, mlp.

    Attributes:
        width, num_heads: D and H.
        qkv_bias: whether q, k and v have biases.
        attention_eps, mlp_eps: of the two norms.
        reads: whether the tokens of a condition are read between the halves, without norm and gate.
        dtype: compute dtype.
    """

    width: int
    num_heads: int
    qkv_bias: bool
    attention_eps: float
    mlp_eps: float
    reads: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        vectors: Sequence[jax.Array],
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, D] -> the same.

        Args:
            x: tokens.
            vectors: shift, scale, gate of attention and shift, scale, gate of the MLP, each [B, 1, D].
            source: what is read in between, [B, N, C].
            mask: bool [B, N], which of it counts.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = vectors

        def attention(name):
            heads, wide = self.num_heads, self.width // self.num_heads
            bias = self.qkv_bias
            return Attention(self.width, heads, heads, wide, bias, out_bias=True, dtype=self.dtype, name=name)

        x = x + gate * attention("attn")(modulated(x, shift, scale, self.attention_eps))[0]
        if self.reads:
            mask = None if mask is None else mask[:, None]
            x = x + attention("cross")(x, mask, source=source)[0]
        mlp = MLP(self.width, 4 * self.width, "gelu_tanh", use_bias=True, dtype=self.dtype, name="mlp")
        x = x + mlp_gate * mlp(modulated(x, mlp_shift, mlp_scale, self.mlp_eps))
        return constrain(x, "batch", "length", "act_embed")
