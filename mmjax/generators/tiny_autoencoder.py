"""A small autoencoder that stands in for a large one, quick enough to look at latents while they are made.

Boer Bohan, 2023, "TAESD", https://github.com/madebyollin/taesd: plain convolutions, trained by distillation.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.nn.full_conv import Conv
from mmjax.nn.mlp import ACTIVATIONS, check_activation

# Latents are squeezed into -LIMIT ... LIMIT before they are decoded.
LIMIT = 3.0


@dataclasses.dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Sizes and options.

    Attributes:
        width: channels throughout.
        encoder_blocks, decoder_blocks: residual blocks of each level; each level but one halves or doubles the sides.
        latent_channels, image_channels: of a latent and of an image.
        activation: of the blocks.
        scale, shift: a diffusion model's latents are (latent - shift) * scale.
    """

    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    image_channels: int = 3
    activation: str = "relu"
    scale: float = 1.0
    shift: float = 0.0

    kind: ClassVar[str] = "tiny_autoencoder"

    def __post_init__(self):
        check_activation("tiny_autoencoder.activation", self.activation)
        if len(self.encoder_blocks) != len(self.decoder_blocks) or not self.encoder_blocks:
            raise ConfigError(
                f"tiny_autoencoder: encoder_blocks has {len(self.encoder_blocks)} levels, decoder_blocks "
                f"{len(self.decoder_blocks)}; both must have as many, and at least one"
            )

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the image for one place of the latent."""
        return 2 ** (len(self.encoder_blocks) - 1)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest image that `create` may be called with."""
        return (self.downsampling, self.downsampling, self.image_channels)


class TinyBlock(nn.Module):
    """relu(x + three convolutions of it). Parameters conv_1, conv_2, conv_3."""

    width: int
    activation: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> the same."""
        h, act = x, ACTIVATIONS[self.activation]
        for number in (1, 2, 3):
            h = Conv(self.width, padding=1, dtype=self.dtype, name=f"conv_{number}")(h if number == 1 else act(h))
        return jax.nn.relu(x + h)


class TinySide(nn.Module):
    """The encoder, or with `decodes` the decoder. Parameters conv_in, block_{l}_{b}, step_{l}, conv_out."""

    config: TinyAutoencoderConfig
    decodes: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, channels] from 0 to 1 to latents [B, h, w, C], or back."""
        c = self.config
        levels = c.decoder_blocks if self.decodes else c.encoder_blocks
        x = Conv(c.width, padding=1, dtype=self.dtype, name="conv_in")(x)
        x = ACTIVATIONS[c.activation](x) if self.decodes else x
        for level, blocks in enumerate(levels):
            if level and not self.decodes:
                x = Conv(c.width, stride=2, padding=1, use_bias=False, dtype=self.dtype, name=f"step_{level}")(x)
            for number in range(blocks):
                x = TinyBlock(c.width, c.activation, self.dtype, name=f"block_{level}_{number}")(x)
            if self.decodes and level + 1 < len(levels):
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv(c.width, padding=1, use_bias=False, dtype=self.dtype, name=f"step_{level}")(x)
        out = c.image_channels if self.decodes else c.latent_channels
        return Conv(out, padding=1, dtype=self.dtype, name="conv_out")(x)


class TinyAutoencoder(nn.Module):
    """Parameters encoder, decoder.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
    """

    config: TinyAutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = TinySide(self.config, False, self.dtype)
        self.decoder = TinySide(self.config, True, self.dtype)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, channels] from -1 to 1 -> latents [B, h, w, C], without a distribution."""
        return self.encoder((images.astype(self.dtype) + 1) / 2)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, h, w, C] -> images [B, H, W, channels], about -1 to 1."""
        return 2 * self.decoder(jnp.tanh(latents.astype(self.dtype) / LIMIT) * LIMIT) - 1

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, channels]."""
        return self.decode(self.encode(images))
