"""The transformer block of SAM's mask decoder: tokens read the image, and the image reads the tokens.

Kirillov et al., 2023, "Segment anything" (appendix A).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.attention import Attention
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm


def attention(width: int, num_heads: int, reduction: int, dtype: jnp.dtype) -> Attention:
    """Attention whose heads share width / reduction channels, with biases everywhere."""
    return Attention(width, num_heads, num_heads, width // reduction // num_heads, True, True, dtype=dtype)


def read(attn: Attention, x: jax.Array, source: jax.Array, values: jax.Array) -> jax.Array:
    """x [B, T, D] attends to keys of `source` and values of `values`, both [B, S, D]."""
    keys = attn.k(source).swapaxes(1, 2), attn.v(values).swapaxes(1, 2)
    return attn.cross(x, keys)


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP on tokens, image to tokens; a norm behind each sum.

    Parameters self_attn, to_image, to_tokens; mlp; self_norm, to_image_norm, mlp_norm, to_tokens_norm.
    """

    width: int
    num_heads: int
    mlp_width: int
    reduction: int
    activation: str
    norm_eps: float
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        make = lambda reduction: attention(self.width, self.num_heads, reduction, self.dtype)
        self.self_attn, self.to_image, self.to_tokens = make(1), make(self.reduction), make(self.reduction)
        self.mlp = MLP(self.width, self.mlp_width, self.activation, use_bias=True, dtype=self.dtype)
        norm = lambda: LayerNorm(self.norm_eps, self.dtype)
        self.self_norm, self.to_image_norm, self.mlp_norm, self.to_tokens_norm = norm(), norm(), norm(), norm()

    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        token_positions: jax.Array,
        image_positions: jax.Array,
        first: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """tokens [B, T, D], image [B, N, D] -> the same.

        Args:
            token_positions, image_positions: [B, T, D], [N, D]; added to whatever makes queries and keys.
            first: bool [], whether this is the first block, whose tokens are their positions: there self-attention
                reads them once, and replaces them instead of adding to them.
        """
        placed = jnp.where(first, tokens, tokens + token_positions)
        h = read(self.self_attn, placed, placed, tokens)
        tokens = self.self_norm(jnp.where(first, h, tokens + h))
        h = read(self.to_image, tokens + token_positions, image + image_positions, image)
        tokens = self.to_image_norm(tokens + h)
        tokens = self.mlp_norm(tokens + self.mlp(tokens))
        h = read(self.to_tokens, image + image_positions, tokens + token_positions, tokens)
        return tokens, self.to_tokens_norm(image + h)
