"""Features of several layers of a tower, each merged by itself, for several layers of an LLM with `DeepStack`.

Meng et al., 2024 ("DeepStack"); Bai et al., 2025 ("Qwen3-VL").
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.downsample import MergeConfig, MergeProjector


@dataclasses.dataclass(frozen=True)
class DeepMergeConfig:
    """Features of 1 + K layers, concatenated over channels: the first for the tokens, the others for the layers behind.

    Attributes:
        merge: how features of the first layer become tokens; those of others are normalised after they are joined.
        more: K, how many further layers' features come.
    """

    merge: MergeConfig
    more: int

    kind: ClassVar[str] = "deep_merge"

    def __post_init__(self):
        if self.more < 1:
            raise ConfigError(f"deep_merge projector: more must be at least 1, got {self.more}")

    @property
    def in_width(self) -> int:
        """Channels of a feature: those of all layers."""
        return self.merge.in_width * (1 + self.more)

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.merge.width

    @property
    def factor(self) -> int:
        """Side of a square of features that becomes one token."""
        return self.merge.factor

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item, see `MergeConfig.num_tokens`."""
        return self.merge.num_tokens(num_features, grid)


class DeepMergeProjector(nn.Module):
    """Features [B, N, (1 + K) * C] -> tokens [B, N / factor^2, (1 + K) * D].

    The first D channels stand in the text; the next D are added to what the LLM's first layer gives, and so on.
    Parameters: merge/... and deep_0/... to deep_{K-1}/... as in `MergeProjector`.
    """

    config: DeepMergeConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        parts = jnp.split(media.values, 1 + c.more, axis=-1)
        out = MergeProjector(c.merge, self.dtype, name="merge")(media.replace(values=parts[0]))
        after = dataclasses.replace(c.merge, norm_at="after")
        values = [out.values]
        for layer, part in enumerate(parts[1:]):
            values.append(MergeProjector(after, self.dtype, name=f"deep_{layer}")(media.replace(values=part)).values)
        return out.replace(values=jnp.concatenate(values, axis=-1))
