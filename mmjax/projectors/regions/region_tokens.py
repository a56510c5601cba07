"""A region projector as the projector of a port: items are regions, read from the maps of their images."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.regions import REGIONS, RegionConfig
from mmjax.projectors.regions.sampled_token import SampledTokenConfig

# The name of the features that an image's own projector reads; maps beside them have the encoder's names.
FEATURES = "features"


@dataclasses.dataclass(frozen=True)
class RegionTokensConfig:
    """Which maps are read, and how.

    Attributes:
        reader: what makes tokens of a region, see `mmjax.projectors.regions`.
        levels: which of the image's features each map of the reader is: "features", or a name in its
            `extra_features` ("stage_0" of a ConvNeXt, "layer_14" of a ViT).
        mask_size: rows and columns of a mask; None for readers of boxes.
    """

    reader: RegionConfig
    levels: tuple[str, ...] = (FEATURES,)
    mask_size: tuple[int, int] | None = None

    kind: ClassVar[str] = "region_tokens"

    def __post_init__(self):
        if len(self.levels) != len(self.reader.in_widths):
            raise ConfigError(
                f"region_tokens.levels {self.levels} are {len(self.levels)}, its reader has in_widths "
                f"{self.reader.in_widths}"
            )
        if (self.reader.takes == "masks") != (self.mask_size is not None):
            raise ConfigError(
                f"region_tokens.mask_size is {self.mask_size}, but its reader {self.reader.kind!r} takes "
                f"{self.reader.takes}"
            )

    @property
    def in_width(self) -> int:
        """The numbers of a region."""
        return 4 if self.mask_size is None else math.prod(self.mask_size)

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.reader.width

    def num_tokens(self, num_features: int, grid=None) -> int:
        """LLM tokens of `num_features` regions."""
        return num_features * self.reader.tokens


class RegionTokens(nn.Module):
    """Regions of any of a row's images to tokens. Parameters reader/...

    Attributes:
        config: maps and reader.
        dtype: compute dtype.
    """

    config: RegionTokensConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """Stage "encoded" [B, R, numbers] -> "projected" [B, R * tokens, D].

        Every region is read from all images of its row and the token of its own is kept: rows have few images, and a
        map is never copied. Regions without a `parent` are of the first image; padding reads it too.

        Args:
            media: `extra_features` has the maps of the row's I images by name, each [B, I, h * h, C].
            train: whether a reader that draws points draws them, from the rng "dropout"; else they lie evenly.

        Raises:
            ValueError: a map that is not there, or is no square.
        """
        c = self.config
        regions = jnp.asarray(media.values)
        regions = regions.reshape(*regions.shape[:2], *(c.mask_size or (4,)))
        batch, number = regions.shape[:2]
        maps = media.extra_features
        if maps is None and self.is_initializing():
            maps = {
                name: jnp.zeros((batch, 1, 4, width)) for name, width in zip(c.levels, c.reader.in_widths, strict=True)
            }
        levels = [self._map(maps or {}, name) for name in c.levels]
        images = levels[0].shape[0] // batch
        reader = REGIONS[type(c.reader)](c.reader, self.dtype, name="reader")
        drawn = {}
        if isinstance(c.reader, SampledTokenConfig) and train and self.has_rng("dropout"):
            drawn["rng"] = self.make_rng("dropout")
        tokens = reader(levels, jnp.repeat(regions, images, axis=0), **drawn)
        tokens = tokens.reshape(batch, images, number, *tokens.shape[2:])
        own = jnp.ones((batch, number), jnp.int32) if media.parent is None else jnp.asarray(media.parent)
        own = jnp.clip(own - 1, 0, images - 1)[:, None, :, None, None]
        tokens = jnp.take_along_axis(tokens, own, axis=1)[:, 0]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), c.reader.tokens, axis=1)
        return media.replace(
            values=tokens.reshape(batch, -1, c.width), segment_ids=segments, extra_features=None, stage="projected"
        )

    @staticmethod
    def _map(maps: dict[str, jax.Array], name: str) -> jax.Array:
        """[B, I, h * h, C] -> [B * I, h, h, C]."""
        if name not in maps:
            raise ValueError(f"regions read the map {name!r} of their image, whose encoder gives {sorted(maps)}")
        *_, places, channels = maps[name].shape
        side = math.isqrt(places)
        if side * side != places:
            raise ValueError(f"the map {name!r} has {places} places an image, which are no square")
        return maps[name].reshape(-1, side, side, channels)
