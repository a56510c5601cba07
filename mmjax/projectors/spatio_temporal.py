"""Means over the frames and over the places of a video, then a map to the LLM's width.

Maaz et al., 2023, "Video-ChatGPT". A video of T frames with P features each becomes T + P tokens instead of T * P.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig

EACH = {LinearProjectorConfig: LinearProjector, MLPProjectorConfig: MLPProjector}


@dataclasses.dataclass(frozen=True)
class SpatioTemporalConfig:
    """Which means become tokens, and the map behind them.

    Attributes:
        projector: of the means; as many tokens as means.
        num_frames, frame_features: T, P: frames of a video, features of a frame.
        means: "frames" (T tokens: of each frame, over its places), "places" (P tokens: of each place, over all
            frames, also called temporal average), or both in one of the two orders: "frames_places" as the published
            weights were trained, "places_frames" as the paper writes it.
    """

    projector: LinearProjectorConfig | MLPProjectorConfig
    num_frames: int
    frame_features: int
    means: str = "frames_places"

    kind: ClassVar[str] = "spatio_temporal"

    def __post_init__(self):
        check_choice("spatio_temporal projector means", self.means, tuple(_PARTS))
        for name in ("num_frames", "frame_features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"spatio_temporal projector: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def in_width(self) -> int:
        """Channels of a feature."""
        return self.projector.in_width

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.projector.width

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one video.

        Raises:
            ConfigError: the encoder gives another number of features than num_frames * frame_features.
        """
        if num_features != self.num_frames * self.frame_features:
            raise ConfigError(
                f"spatio_temporal projector: it takes {self.num_frames} frames of {self.frame_features} features, "
                f"{self.num_frames * self.frame_features} together, but the encoder gives {num_features}"
            )
        sizes = {"frames": self.num_frames, "places": self.frame_features}
        return sum(sizes[part] for part in _PARTS[self.means])


_PARTS = {
    "frames": ("frames",),
    "places": ("places",),
    "frames_places": ("frames", "places"),
    "places_frames": ("places", "frames"),
}


class SpatioTemporalProjector(nn.Module):
    """Features [B, I * T * P, in_width] -> tokens [B, I * (T + P), D]. Parameters: each/..., of the map."""

    config: SpatioTemporalConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none.

        Raises:
            ValueError: features that are no whole number of videos.
        """
        c = self.config
        batch, length, channels = media.values.shape
        if length % (c.num_frames * c.frame_features):
            raise ValueError(
                f"{length} features are no whole number of videos of {c.num_frames} x {c.frame_features} features"
            )
        x = media.values.reshape(batch, -1, c.num_frames, c.frame_features, channels).astype(jnp.float32)
        means = {"frames": lambda: x.mean(axis=3), "places": lambda: x.mean(axis=2)}
        x = jnp.concatenate([means[part]() for part in _PARTS[c.means]], axis=2)
        items, tokens = x.shape[1:3]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.asarray(segments).reshape(batch, items, -1).max(axis=2)
            segments = jnp.repeat(segments, tokens, axis=1)
        media = media.replace(values=x.reshape(batch, items * tokens, channels), segment_ids=segments)
        return EACH[type(c.projector)](c.projector, self.dtype, name="each")(media, train)
