"""Image and caption side by side, each with weights of its own, in one attention (Esser et al., 2024, "MMDiT")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.norms import NormConfig

NORM_EPS = 1e-6


class JointBlock(nn.Module):
    """Parameters image_ and text_ modulation, attn, mlp; image_attn_2 where the image attends twice.

    Attributes:
        width, num_heads: D and H.
        qk_norm: whether every head of q and of k is normalised.
        twice: whether the image attends to itself alone as well (Stable Diffusion 3.5 Medium).
        last: whether the caption is only read, and then no more.
        dtype: compute dtype.
    """

    width: int
    num_heads: int
    qk_norm: bool = False
    twice: bool = False
    last: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        # Of nine vectors the last three are the second attention's; of a caption that is only read there are two.
        self.image_modulation = Modulation(9 if self.twice else 6, self.width, self.dtype)
        self.text_modulation = Modulation(2 if self.last else 6, self.width, self.dtype)
        self.image_attn, self.text_attn = self._attention(), self._attention()
        if self.twice:
            self.image_attn_2 = self._attention()
        self.image_mlp = self._mlp()
        if not self.last:
            self.text_mlp = self._mlp()

    def __call__(
        self, image: jax.Array, text: jax.Array, vector: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """image [B, P, D], text [B, N, D], vector [B, D] -> image and text; mask bool [B, 1, P + N] of what is seen."""
        shift, scale, gate, *others = self.image_modulation(vector)
        seen = modulated(image, shift, scale, NORM_EPS)
        if self.last:
            text_scale, text_shift = self.text_modulation(vector)
        else:
            text_shift, text_scale, text_gate, *text_others = self.text_modulation(vector)
        read = modulated(text, text_shift, text_scale, NORM_EPS)
        pairs = zip(self.image_attn.project(seen), self.text_attn.project(read), strict=True)
        heads, _ = self.image_attn.read(*(jnp.concatenate(pair, axis=1) for pair in pairs), mask)
        length = image.shape[1]
        image_heads, text_heads = heads[:, :length], heads[:, length:]
        # Both are read from the image as it comes in.
        again = self._again(image, others[3:]) if self.twice else 0
        image = image + gate * self.image_attn.out(image_heads) + again
        image = self._fed(image, self.image_mlp, *others[:3])
        if not self.last:
            text = self._fed(text + text_gate * self.text_attn.out(text_heads), self.text_mlp, *text_others)
        return image, text

    def _again(self, image: jax.Array, vectors: list[jax.Array]) -> jax.Array:
        shift, scale, gate = vectors
        return gate * self.image_attn_2(modulated(image, shift, scale, NORM_EPS))[0]

    def _fed(self, x: jax.Array, mlp: MLP, shift: jax.Array, scale: jax.Array, gate: jax.Array) -> jax.Array:
        x = x + gate * mlp(modulated(x, shift, scale, NORM_EPS))
        return constrain(x, "batch", "length", "act_embed")

    def _attention(self) -> Attention:
        heads = self.num_heads
        norm = NormConfig("rms", NORM_EPS) if self.qk_norm else None
        return Attention(self.width, heads, heads, self.width // heads, True, True, dtype=self.dtype, qk_norm=norm)

    def _mlp(self) -> MLP:
        return MLP(self.width, 4 * self.width, "gelu_tanh", use_bias=True, dtype=self.dtype)
