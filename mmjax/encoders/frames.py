"""Videos through an image encoder, each frame by itself.

What is then done over time is the projector's affair: temporal and spatial means (Maaz et al., 2023, "Video-ChatGPT"),
a Q-Former on each frame (Dai et al., 2023, "InstructBLIP"), pooled frames (Li et al., 2024, "LLaVA-OneVision").
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.convnext import ConvNeXt, ConvNeXtConfig
from mmjax.encoders.efficientnet import EfficientNet, EfficientNetConfig
from mmjax.encoders.mixed import MixedEncoder, MixedEncoderConfig
from mmjax.encoders.resnet import ResNet, ResNetConfig
from mmjax.encoders.swin import Swin, SwinConfig
from mmjax.encoders.vit import ViT, ViTConfig

ImageConfig = ViTConfig | ConvNeXtConfig | ResNetConfig | SwinConfig | EfficientNetConfig | MixedEncoderConfig
IMAGE_ENCODERS: dict[type, type[nn.Module]] = {
    ViTConfig: ViT,
    ConvNeXtConfig: ConvNeXt,
    ResNetConfig: ResNet,
    SwinConfig: Swin,
    EfficientNetConfig: EfficientNet,
    MixedEncoderConfig: MixedEncoder,
}


@dataclasses.dataclass(frozen=True)
class FramesConfig:
    """An image encoder and how many frames a video has.

    Attributes:
        encoder: what each frame goes through; all have the same weights.
        num_frames: of one item.
    """

    encoder: ImageConfig
    num_frames: int

    kind: ClassVar[str] = "frames"

    def __post_init__(self):
        if self.num_frames < 1:
            raise ConfigError(f"frames.num_frames must be at least 1, got {self.num_frames}")

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.encoder.feature_width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (frames, H, W, 3)."""
        return (self.num_frames, *self.encoder.item_shape)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one video: those of its frames.

        Args:
            grid: (frames, height, width) of the video, where it has another number of frames than `num_frames`.
            original_size: as the image encoder's.
        """
        if grid is None:
            return self.num_frames * self.encoder.num_tokens(None, original_size)
        return int(grid[0]) * self.encoder.num_tokens((1, *grid[1:]), original_size)


class Frames(nn.Module):
    """Videos to the features of their frames, one frame after the other. Parameters: those of the encoder in `frame`.

    Attributes:
        config: the image encoder.
        dtype: compute dtype.
        remat: rematerialisation policy of its blocks.
    """

    config: FramesConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.frame = IMAGE_ENCODERS[type(c.encoder)](c.encoder, self.dtype, self.remat)

    def run(self, values: jax.Array) -> dict[str, Any]:
        """The image encoder on every frame of videos [B, frames, H, W, 3]: its outputs, each [B, frames, ...]."""
        batch, frames = values.shape[:2]
        out = self.frame.run(values.reshape(batch * frames, *values.shape[2:]))
        return jax.tree.map(lambda leaf: leaf.reshape(batch, frames, *leaf.shape[1:]), out)

    def __call__(self, media: Media) -> Media:
        """Videos [B, I, frames, H, W, 3] -> features [B, I * frames * N, D]; those of a video are one item.

        Raises:
            ValueError: media that are no videos, or see the image encoder.
        """
        if media.values.ndim != 6:
            raise ValueError(f"videos are [B, I, frames, H, W, 3], got {media.values.ndim} axes: {media.values.shape}")
        batch, items, frames = media.values.shape[:3]
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments), frames, axis=1)
        images = media.values.reshape(batch, items * frames, *media.values.shape[3:])
        return self.frame(media.replace(values=images, segment_ids=segments))

    def create(self, values: jax.Array) -> Any:
        """Touches every parameter once: what `init` runs. values [B, frames, H, W, 3]."""
        return self.frame.create(values.reshape(-1, *values.shape[2:]))
