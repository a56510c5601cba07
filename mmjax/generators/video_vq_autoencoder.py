"""Videos and images to numbers of a codebook and back, several frames at a time (Wang et al., 2024, "Emu3").

Frame by frame there is the autoencoder of images; between it and the codes, convolutions look back in time.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.generators.autoencoder import Side, check_images
from mmjax.generators.vector_quantizer import Quantised, VectorQuantizer
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.nn.batch_norm import FixedBatchNorm
from mmjax.nn.causal_conv import CausalConv


@dataclasses.dataclass(frozen=True)
class VideoVQAutoencoderConfig:
    """Sizes and options.

    Attributes:
        maps: the autoencoder of frames, with spatial norms and a decoder.
        frames: how many frames one code stands for, a power of two.
    """

    maps: VQAutoencoderConfig
    frames: int = 4

    kind: ClassVar[str] = "video_vq_autoencoder"

    def __post_init__(self):
        maps = self.maps
        if self.frames < 1 or self.frames & (self.frames - 1):
            raise ConfigError(f"video_vq_autoencoder.frames: {self.frames} is not a power of two")
        if not (maps.spatial_norm and maps.decodes) or maps.unit_codes:
            raise ConfigError("video_vq_autoencoder.maps: spatial_norm and decodes must be True, unit_codes False")
        if maps.inner_channels != maps.latent_channels:
            raise ConfigError(
                f"video_vq_autoencoder.maps: inner_channels {maps.inner_channels} and latent_channels "
                f"{maps.latent_channels} must be the same: both go through the same convolutions"
            )

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """Shape of the smallest video that `create` may be called with."""
        return (self.frames, *self.maps.feature_shape)

    @property
    def halvings(self) -> int:
        """How often time is halved."""
        return self.frames.bit_length() - 1


class TimeBlock(nn.Module):
    """x + two convolutions of it. Parameters norm_1, conv_1, norm_2, conv_2."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, h, w, C] -> the same."""
        h = x
        for number in (1, 2):
            h = jax.nn.silu(FixedBatchNorm(dtype=self.dtype, name=f"norm_{number}")(h))
            h = CausalConv(self.width, dtype=self.dtype, name=f"conv_{number}")(h)
        return x + h


class TimeSide(nn.Module):
    """Time halved and then mixed, or with `decodes` mixed and then doubled. Parameters step_{n}, block_{n}."""

    config: VideoVQAutoencoderConfig
    decodes: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, h, w, C] -> [B, T / frames, h, w, C], or the other way."""
        c, wide = self.config, self.config.maps.inner_channels
        x = x if self.decodes else self._steps(x, wide)
        for number in range(c.maps.blocks):
            x = TimeBlock(wide, self.dtype, name=f"block_{number}")(x)
        return self._steps(x, wide) if self.decodes else x

    def _steps(self, x: jax.Array, wide: int) -> jax.Array:
        for number in range(self.config.halvings):
            name = f"step_{number}"
            if self.decodes:
                step = CausalConv(wide, dtype=self.dtype, name=name)
                x = x.repeat(2, axis=1)
            else:
                step = CausalConv(wide, (4, 3, 3), (2, 1, 1), self.dtype, name=name)
            x = jax.nn.silu(step(x))
        return x


class VideoVQAutoencoder(nn.Module):
    """Parameters encoder, encoder_time, to_codes, quantizer, from_codes, decoder_time, decoder.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
    """

    config: VideoVQAutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, maps = self.config, self.config.maps
        self.encoder, self.decoder = (Side(maps, decodes, self.dtype) for decodes in (False, True))
        self.encoder_time, self.decoder_time = (TimeSide(c, decodes, self.dtype) for decodes in (False, True))
        self.to_codes = CausalConv(maps.latent_channels, (3, 1, 1), dtype=self.dtype)
        self.from_codes = CausalConv(maps.inner_channels, (3, 1, 1), dtype=self.dtype)
        self.quantizer = VectorQuantizer(maps.codes, maps.latent_channels, self.dtype)

    def encode(self, media: jax.Array) -> jax.Array:
        """Images or videos, from -1 to 1 -> latents, not quantised yet.

        Args:
            media: images [B, H, W, channels], each of which is a video that stands still; or videos
                [B, T, H, W, channels].

        Returns:
            [B, h, w, latent_channels], or [B, T / frames, h, w, latent_channels].

        Raises:
            ValueError: sides that are no multiple of `maps.downsampling`, or T that is none of `frames`.
        """
        c, still = self.config, media.ndim == 4
        if still:
            media = jnp.broadcast_to(media[:, None], (media.shape[0], c.frames, *media.shape[1:]))
        if media.shape[1] % c.frames:
            raise ValueError(f"videos of {media.shape[1]} frames; there must be a multiple of {c.frames}")
        frames = media.reshape(-1, *media.shape[2:])
        check_images(frames, c.maps.downsampling)
        x = self.encoder(frames.astype(self.dtype))
        x = self.to_codes(self.encoder_time(x.reshape(*media.shape[:2], *x.shape[1:])))
        return x[:, 0] if still else x

    def quantize(self, latents: jax.Array) -> Quantised:
        """Latents [..., latent_channels] -> values, codes int32 [...], and the loss that draws them together."""
        return self.quantizer(latents)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes to images or videos, about -1 to 1.

        Args:
            codes: int [B, h, w] of images, or [B, t, h, w] of videos.

        Returns:
            [B, H, W, channels], the first of the frames, or [B, t * frames, H, W, channels].

        Raises:
            ValueError: other shapes, or no whole numbers.
        """
        if codes.ndim not in (3, 4) or not jnp.issubdtype(codes.dtype, jnp.integer):
            raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}; wanted int [B, h, w] or [B, t, h, w]")
        still = codes.ndim == 3
        values = self.quantizer.lookup(codes[:, None] if still else codes)
        batch = values.shape[0]
        # The values themselves, which the norms see, go the way of what is decoded.
        both = self.decoder_time(jnp.concatenate([self.from_codes(values), values]))
        x, guide = (part.reshape(-1, *part.shape[2:]) for part in (both[:batch], both[batch:]))
        x = self.decoder(x, guide)
        x = x.reshape(batch, -1, *x.shape[1:])
        return x[:, 0] if still else x

    def create(self, videos: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. videos [B, T, H, W, channels]."""
        return self.decode(self.quantize(self.encode(videos)).codes)
