"""Images to numbers of a codebook and back: what a language model writes when it draws.

Esser et al., 2021, "VQGAN"; with norms that see the codes, Zheng et al., 2022, "MoVQ".
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.generators.autoencoder import Side, check_images, check_sides
from mmjax.generators.vector_quantizer import Quantised, VectorQuantizer, unit_length
from mmjax.nn.full_conv import Conv


@dataclasses.dataclass(frozen=True)
class VQAutoencoderConfig:
    """Sizes and options.

    Attributes:
        codes, latent_channels: how many codes there are, and their channels, which are those of a latent.
        widths, blocks, image_channels, groups, activation, middle_attention, attention_levels: see `AutoencoderConfig`.
        inner_channels: of what the encoder gives and the decoder takes; maps stand between it and the latents.
        spatial_norm: whether the decoder's norms are scaled and shifted by the codes' values.
        unit_codes: whether values are brought to length 1 before they are decoded.
        decodes: whether there is a decoder.
        scale: a diffusion model's latents are latent * scale.
        image_size: pixels of a side that it was trained with; any multiple of `downsampling` works.
    """

    codes: int = 256
    latent_channels: int = 3
    widths: tuple[int, ...] = (128, 256, 512)
    blocks: int = 2
    inner_channels: int = 3
    image_channels: int = 3
    groups: int = 32
    activation: str = "silu"
    middle_attention: bool = True
    attention_levels: tuple[int, ...] = ()
    spatial_norm: bool = False
    unit_codes: bool = False
    decodes: bool = True
    scale: float = 0.18215
    image_size: int = 256

    kind: ClassVar[str] = "vq_autoencoder"
    shift: ClassVar[float] = 0.0

    def __post_init__(self):
        check_sides(self)
        if self.codes < 1 or self.latent_channels < 1:
            counts = f"codes {self.codes}, latent_channels {self.latent_channels}"
            raise ConfigError(f"vq_autoencoder: {counts}; neither may be less than 1")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest image that `create` may be called with."""
        return (self.downsampling, self.downsampling, self.image_channels)

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the image for one code."""
        return 2 ** (len(self.widths) - 1)

    @property
    def encoded_channels(self) -> int:
        """Channels that the encoder gives."""
        return self.inner_channels


class VQAutoencoder(nn.Module):
    """Parameters encoder, to_codes, quantizer, from_codes; decoder where the config `decodes`.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
    """

    config: VQAutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.encoder = Side(c, False, self.dtype)
        self.to_codes = Conv(c.latent_channels, 1, dtype=self.dtype)
        self.quantizer = VectorQuantizer(c.codes, c.latent_channels, self.dtype)
        self.from_codes = Conv(c.inner_channels, 1, dtype=self.dtype)
        if c.decodes:
            self.decoder = Side(c, True, self.dtype)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, channels] from -1 to 1 -> latents [B, h, w, latent_channels], not quantised yet.

        Raises:
            ValueError: sides that are no multiple of `downsampling`.
        """
        check_images(images, self.config.downsampling)
        return self.to_codes(self.encoder(images.astype(self.dtype)))

    def quantize(self, latents: jax.Array) -> Quantised:
        """Latents [B, h, w, latent_channels] -> values, codes int32 [B, h, w], the loss that draws them together."""
        return self.quantizer(latents)

    def decode(self, given: jax.Array, quantize: bool = True) -> jax.Array:
        """Codes, or latents, to images [B, H, W, channels], about -1 to 1.

        Args:
            given: codes int [B, h, w], or latents float [B, h, w, latent_channels].
            quantize: whether latents are quantised first.

        Raises:
            ValueError: other shapes, or a config without a decoder.
        """
        wide = self.config.latent_channels
        if not self.config.decodes:
            raise ValueError("this VQ autoencoder has no decoder")
        if jnp.issubdtype(given.dtype, jnp.integer):
            if given.ndim != 3:
                raise ValueError(f"codes are {tuple(given.shape)}; wanted [B, h, w]")
            values = self.quantizer.lookup(given)
        else:
            if given.ndim != 4 or given.shape[-1] != wide:
                raise ValueError(f"latents are {tuple(given.shape)}; wanted [B, h, w, {wide}]")
            values = self.quantizer(given).values if quantize else given.astype(self.dtype)
        values = unit_length(values) if self.config.unit_codes else values
        return self.decoder(self.from_codes(values), values if self.config.spatial_norm else None)

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, channels]."""
        quantised = self.quantize(self.encode(images))
        return self.decode(quantised.codes) if self.config.decodes else self.from_codes(quantised.values)
