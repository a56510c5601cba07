"""One layer of cross-attention from learned latents, which read the features and themselves.

Peng et al., 2023 ("Kosmos-2"); Huang et al., 2023 ("Language Is Not All You Need").
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.attention import Attention
from mmjax.nn.linear import Linear
from mmjax.projectors.items import check_features, join_items, split_items


@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig:
    """Sizes and options.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM, and of the attention.
        num_latents: Q, tokens of an item.
        num_heads: H.
        normalize: whether every feature is first divided by its length.
        output_scale: factor of the tokens, for an LLM that scales text and media alike.
        num_features: features of an item where all items have as many, see `split_items`.
    """

    in_width: int
    width: int
    num_latents: int = 64
    num_heads: int = 32
    normalize: bool = True
    output_scale: float = 1.0
    num_features: int | None = None

    kind: ClassVar[str] = "latent_attention"

    def __post_init__(self):
        for name in ("num_latents", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"latent_attention projector: {name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ConfigError(
                f"latent_attention projector: width {self.width} is not a multiple of num_heads {self.num_heads}"
            )

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item, whatever its grid: the latents.

        Raises:
            ConfigError: the encoder gives another number of features than the config says.
        """
        check_features(self.kind, self.num_features, num_features)
        return self.num_latents


class LatentAttentionProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, I * Q, D].

    Parameters: latents [Q, D]; input/{kernel, bias}; attn, see `Attention`. Padding features are never seen.
    """

    config: LatentAttentionConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none.

        Raises:
            ValueError: see `split_items`.
        """
        c = self.config
        x, seen = split_items(media, c.num_features, self.is_initializing())
        if c.normalize:
            x = jnp.asarray(x, jnp.float32)
            # The least length is added within the root, so that a feature of zeros, as padding may be, has a gradient.
            x = x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-24)
        x = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="input")(x)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
        latents = self.param("latents", init, (c.num_latents, c.width)).astype(self.dtype)
        latents = jnp.broadcast_to(latents, (x.shape[0], *latents.shape))
        mask = None
        if seen is not None:
            mask = jnp.concatenate([seen, jnp.ones((x.shape[0], c.num_latents), bool)], axis=1)[:, None]
        size = c.width, c.num_heads, c.num_heads, c.width // c.num_heads
        attn = Attention(*size, qkv_bias=True, out_bias=True, dtype=self.dtype, name="attn")
        tokens, _ = attn(latents, mask, source=jnp.concatenate([x, latents], axis=1))
        return join_items(media, tokens if c.output_scale == 1 else tokens * c.output_scale, seen)
