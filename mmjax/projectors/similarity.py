"""Fewer tokens by leaving out those that say what others say.

Liu et al., 2024, "TextMonkey": of a document's tokens many are alike (paper, margins). Those least like any other are
kept, in their order, and read all tokens once more, so that what the others knew is not lost.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.attention import Attention
from mmjax.nn.norms import LayerNorm
from mmjax.projectors.items import join_items, split_items
from mmjax.projectors.resampler import ResamplerConfig, ResamplerProjector


@dataclasses.dataclass(frozen=True)
class SimilarityConfig:
    """What makes the tokens, and how many of them are kept.

    Attributes:
        projector: a resampler, of each view of an item.
        views: how many views an item has.
        num_kept: tokens of an item that are left.
        num_heads: of the attention by which they read all.
    """

    projector: ResamplerConfig
    views: int
    num_kept: int
    num_heads: int = 32

    kind: ClassVar[str] = "similarity"

    def __post_init__(self):
        if not 1 <= self.num_kept <= self.num_made:
            raise ConfigError(
                f"similarity projector: num_kept must be 1 to the {self.num_made} tokens that {self.views} views make, "
                f"got {self.num_kept}"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"similarity projector: width {self.width} is not a multiple of {self.num_heads} heads")

    @property
    def in_width(self) -> int:
        """Channels of a feature."""
        return self.projector.in_width

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.projector.width

    @property
    def num_made(self) -> int:
        """Tokens of an item before some are left out."""
        return self.views * self.projector.query_grid[0] * self.projector.query_grid[1]

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: those that are kept.

        Raises:
            ConfigError: its features are not those of `views` views.
        """
        made = self.projector.num_tokens(num_features)
        if made != self.num_made:
            raise ConfigError(f"similarity projector: {num_features} features make {made} tokens, not {self.num_made}")
        return self.num_kept


def least_similar(x: jax.Array, count: int) -> jax.Array:
    """int32 [B, count]: places, in their order, of the tokens [B, N, D] whose nearest other token is farthest.

    Near is by the cosine of their angle; of equally near ones the first is kept.
    """
    x = x.astype(jnp.float32)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    cosines = jnp.einsum("bnd,bmd->bnm", x, x, precision="highest")
    nearest = jnp.max(jnp.where(jnp.eye(x.shape[1], dtype=bool), -jnp.inf, cosines), axis=-1)
    return jnp.sort(jax.lax.top_k(-nearest, count)[1], axis=-1)


class SimilarityProjector(nn.Module):
    """Features [B, I * N, in_width] -> tokens [B, I * kept, D]. Parameters: each, norm, attn."""

    config: SimilarityConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        made = ResamplerProjector(c.projector, self.dtype, name="each")(media, train)
        heads = c.num_heads
        attention = Attention(c.width, heads, heads, c.width // heads, True, True, dtype=self.dtype, name="attn")
        norm = LayerNorm(dtype=self.dtype, name="norm")
        if self.is_initializing():
            norm(made.values), attention(made.values)
            return made
        x, seen = split_items(made, c.num_made)
        kept = jnp.take_along_axis(x, least_similar(x, c.num_kept)[..., None], axis=1)
        y = kept + attention(norm(kept), source=norm(x))[0]
        return join_items(made, y, seen)
