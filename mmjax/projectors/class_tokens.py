"""Several tokens of an image's one vector, by one linear map (Koh et al., 2023, "FROMAGe", "GILL").

The vector is the first feature of an item: CLIP's normed class token, where the encoder has `feature_norm`.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear
from mmjax.projectors.items import check_features, join_items, split_items


@dataclasses.dataclass(frozen=True)
class ClassTokensConfig:
    """Sizes of the map.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        tokens: made of an item.
        num_features: features of an item, of which the first is read.
    """

    in_width: int
    width: int
    tokens: int = 1
    num_features: int = 1

    kind: ClassVar[str] = "class_tokens"

    def __post_init__(self):
        for name in ("tokens", "num_features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"class_tokens.{name} must be at least 1, got {getattr(self, name)}")

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item.

        Raises:
            ConfigError: the encoder gives another number of features than the config says.
        """
        check_features(self.kind, self.num_features, num_features)
        return self.tokens


class ClassTokens(nn.Module):
    """Features [B, I * num_features, in_width] -> tokens [B, I * tokens, D]. Parameters out/{kernel, bias}."""

    config: ClassTokensConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` does not matter."""
        c = self.config
        features, seen = split_items(media, c.num_features)
        out = Linear((c.tokens, c.width), ("feature", None, "embed"), use_bias=True, dtype=self.dtype, name="out")
        return join_items(media, out(features[:, 0]), seen)
