"""A Q-Former over time: it reads what each frame of a video, or each clip of a sound, became.

Zhang et al., 2023 ("Video-LLaMA"): an image Q-Former on every frame, learned positions of the frames, and a second
Q-Former of two layers over all of them. Its branch of sound has one vector a clip in the place of the first Q-Former.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear
from mmjax.projectors.items import join_items, split_items
from mmjax.projectors.qformer import QFormer, QFormerConfig


@dataclasses.dataclass(frozen=True)
class VideoQFormerConfig:
    """Two Q-Formers, one behind the other.

    Attributes:
        video: over all frames; its `in_width` is that of what the first one gives.
        num_frames: of an item.
        frame: of one frame, whose `num_features` says how many features that has; its `width` is its `query_width`,
            since there is no map between the two. None: frames are one feature each and go to `video` as they are.
    """

    video: QFormerConfig
    num_frames: int
    frame: QFormerConfig | None = None

    kind: ClassVar[str] = "video_qformer"

    def __post_init__(self):
        if self.num_frames < 1:
            raise ConfigError(f"video_qformer projector: num_frames must be at least 1, got {self.num_frames}")
        if any(c is not None and c.vocab_size for c in (self.frame, self.video)):
            raise ConfigError("video_qformer projector: neither Q-Former reads text; vocab_size must be None")
        if self.frame is None:
            return
        if self.frame.num_features is None:
            raise ConfigError("video_qformer projector: frame.num_features must say how many features a frame has")
        widths = {self.frame.width, self.frame.query_width, self.video.in_width}
        if len(widths) > 1:
            raise ConfigError(
                f"video_qformer projector: frame.width {self.frame.width}, frame.query_width {self.frame.query_width} "
                f"and video.in_width {self.video.in_width} must be one"
            )

    @property
    def in_width(self) -> int:
        """Channels of a feature."""
        return (self.frame or self.video).in_width

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.video.width

    @property
    def num_features(self) -> int:
        """Features of one item."""
        return self.num_frames * (1 if self.frame is None else self.frame.num_features)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: the queries of the second Q-Former.

        Raises:
            ConfigError: the encoder gives other than `num_frames` frames.
        """
        if num_features != self.num_features:
            raise ConfigError(
                f"video_qformer projector: {num_features} features an item are not {self.num_frames} frames of "
                f"{self.num_features // self.num_frames}"
            )
        return self.video.num_queries


class VideoQFormerProjector(nn.Module):
    """Features [B, I * frames * N, in_width] -> tokens [B, I * Q, D].

    Parameters: frame {queries, qformer}, positions [frames, width], video {queries, qformer}, out. An item is padding
    where its first feature is.
    """

    config: VideoQFormerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout (needs the rng "dropout" where a config has any)."""
        c = self.config
        x, seen = split_items(media, c.num_features)
        items = x.shape[0]
        if c.frame is not None:
            x = x.reshape(items * c.num_frames, c.frame.num_features, c.in_width)
            x = Reader(c.frame, self.dtype, name="frame")(x, train)
        x = x.reshape(items, c.num_frames, -1, c.video.in_width)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "feature"))
        positions = self.param("positions", init, (c.num_frames, c.video.in_width)).astype(self.dtype)
        x = (x.astype(self.dtype) + positions[:, None]).reshape(items, -1, c.video.in_width)
        x = Reader(c.video, self.dtype, name="video")(x, train)
        out = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="out")
        return join_items(media, out(x), seen)


class Reader(nn.Module):
    """A Q-Former's queries that read features [B, N, in_width] -> [B, Q, query_width]; without a map behind it."""

    config: QFormerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
        """`train` turns on dropout."""
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        queries = self.param("queries", init, (c.num_queries, c.query_width)).astype(self.dtype)
        x = jnp.broadcast_to(queries, (features.shape[0], *queries.shape))
        rng = self.make_rng("dropout") if train and c.drops else None
        return QFormer(c, self.dtype, name="qformer")(x, c.num_queries, features, rng=rng)
