"""Images to latents and back: the variational autoencoder of latent diffusion (Rombach et al., 2022)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import attend
from mmjax.nn.full_conv import Conv
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.res_block import ResBlock
from mmjax.nn.spatial_norm import map_norm

NORM_EPS = 1e-6
# Logarithms of variances are kept between these.
LEAST, MOST = -30.0, 20.0


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and options.

    Attributes:
        widths: channels of each level; each but the last halves the sides.
        blocks: residual blocks of a level; the decoder has one more.
        latent_channels: of a latent.
        image_channels: of an image.
        groups: of the norms.
        activation: of the blocks; the last one of either side is always SiLU.
        middle_attention: whether the innermost map attends to itself.
        attention_levels: which levels, from 0 for the outermost, attend to themselves after every block.
        latent_maps: whether 1 x 1 convolutions stand between the encoder and latents, and latents and the decoder.
        scale, shift: a diffusion model's latents are (latent - shift) * scale.
        image_size: pixels of a side that it was trained with; any multiple of `downsampling` works.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    activation: str = "silu"
    middle_attention: bool = True
    attention_levels: tuple[int, ...] = ()
    latent_maps: bool = True
    scale: float = 0.18215
    shift: float = 0.0
    image_size: int = 512

    kind: ClassVar[str] = "autoencoder"

    def __post_init__(self):
        check_sides(self)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest image that `create` may be called with."""
        return (self.downsampling, self.downsampling, self.image_channels)

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the image for one place of the latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def encoded_channels(self) -> int:
        """Channels that the encoder gives: a mean and a variance each."""
        return 2 * self.latent_channels


def check_sides(config: Any) -> None:
    """Raises ConfigError where `Side` cannot be built from the config of an autoencoder."""
    check_activation(f"{config.kind}.activation", config.activation)
    if not config.widths or config.blocks < 1:
        raise ConfigError(f"{config.kind}: there must be at least one level, and one block in each")
    for width in config.widths:
        if width % config.groups:
            raise ConfigError(f"{config.kind}.widths: {width} is not a multiple of groups {config.groups}")
    for level in config.attention_levels:
        if not 0 <= level < len(config.widths):
            raise ConfigError(f"{config.kind}.attention_levels: {level} is none of the {len(config.widths)} levels")


class Moments(NamedTuple):
    """A normal distribution of latents: mean and logarithm of the variance, [B, h, w, C] each."""

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, rng: jax.Array) -> jax.Array:
        """A latent drawn from it."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * jax.random.normal(rng, self.mean.shape, self.mean.dtype)

    def divergence(self) -> jax.Array:
        """float32 [B], the Kullback-Leibler divergence from a standard normal, summed over the latent."""
        mean, log = self.mean.astype(jnp.float32), self.log_variance.astype(jnp.float32)
        return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log) - 1 - log, axis=(1, 2, 3))


class MapAttention(nn.Module):
    """Every place of a map sees all, with one head. Parameters norm, q, k, v, o."""

    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, guide: jax.Array | None = None) -> jax.Array:
        """[B, h, w, C], with perhaps a guide of the norm -> the same."""
        batch, height, width, channels = x.shape

        def linear(name, axes):
            return Linear((channels,), axes, use_bias=True, dtype=self.dtype, name=name)

        h = map_norm(x, guide, self.groups, NORM_EPS, self.dtype, "norm").reshape(batch, -1, channels)
        q, k, v = (linear(name, ("embed", "feature"))(h) for name in ("q", "k", "v"))
        h = attend(q[:, :, None], k[:, None], v[:, None], None)[:, :, 0]
        return x + linear("o", ("feature", "embed"))(h).reshape(batch, height, width, channels)


class Side(nn.Module):
    """The encoder, or with `decodes` the decoder.

    Parameters conv_in; level_{l}_{b} with attention_{l}_{b}, and step_{l} between levels; middle_1, attention,
    middle_2; norm, conv_out.

    Attributes:
        config: that of an autoencoder.
        decodes: whether this is the decoder.
        dtype: compute dtype.
    """

    config: Any
    decodes: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, guide: jax.Array | None = None) -> jax.Array:
        """Images [B, H, W, channels] to `encoded_channels` [B, h, w, .], or latents [B, h, w, C] to images.

        A guide [B, h, w, G] scales and shifts all the norms.
        """
        c = self.config
        last = len(c.widths) - 1
        widths = c.widths[::-1] if self.decodes else c.widths
        x = Conv(widths[0], padding=1, dtype=self.dtype, name="conv_in")(x)
        x = constrain(x, "batch", None, None, "act_embed")
        if self.decodes:
            x = self._middle(x, guide)
        for level, width in enumerate(widths):
            for number in range(c.blocks + self.decodes):
                x = self._block(width, f"level_{level}_{number}")(x, guide=guide)
                if (last - level if self.decodes else level) in c.attention_levels:
                    x = MapAttention(c.groups, self.dtype, name=f"attention_{level}_{number}")(x, guide)
            if level < last:
                x = self._step(x, width, f"step_{level}")
        if not self.decodes:
            x = self._middle(x, guide)
        x = jax.nn.silu(map_norm(x, guide, c.groups, NORM_EPS, self.dtype, "norm"))
        out = c.image_channels if self.decodes else c.encoded_channels
        return Conv(out, padding=1, dtype=self.dtype, name="conv_out")(x)

    def _block(self, width: int, name: str) -> ResBlock:
        return ResBlock(width, self.config.groups, NORM_EPS, self.config.activation, self.dtype, name=name)

    def _middle(self, x: jax.Array, guide: jax.Array | None) -> jax.Array:
        x = self._block(x.shape[-1], "middle_1")(x, guide=guide)
        if self.config.middle_attention:
            x = MapAttention(self.config.groups, self.dtype, name="attention")(x, guide)
        return self._block(x.shape[-1], "middle_2")(x, guide=guide)

    def _step(self, x: jax.Array, width: int, name: str) -> jax.Array:
        if self.decodes:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            return Conv(width, padding=1, dtype=self.dtype, name=name)(x)
        # Zeros below and on the right alone: so it was trained.
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(width, stride=2, dtype=self.dtype, name=name)(x)


class Autoencoder(nn.Module):
    """Parameters encoder, decoder; to_moments and from_latents where there are `latent_maps`.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
    """

    config: AutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Side(c, False, self.dtype), Side(c, True, self.dtype)
        if c.latent_maps:
            self.to_moments = Conv(2 * c.latent_channels, 1, dtype=self.dtype)
            self.from_latents = Conv(c.latent_channels, 1, dtype=self.dtype)

    def encode(self, images: jax.Array) -> Moments:
        """Images [B, H, W, channels] from -1 to 1 -> the distribution of their latents, not scaled.

        Raises:
            ValueError: sides that are no multiple of `downsampling`.
        """
        check_images(images, self.config.downsampling)
        x = self.encoder(images.astype(self.dtype))
        x = self.to_moments(x) if self.config.latent_maps else x
        mean, log = jnp.split(x, 2, axis=-1)
        return Moments(mean, jnp.clip(log, LEAST, MOST))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, h, w, C], not scaled -> images [B, H, W, channels], about -1 to 1.

        Raises:
            ValueError: another number of channels.
        """
        if latents.ndim != 4 or latents.shape[-1] != self.config.latent_channels:
            raise ValueError(f"latents are {tuple(latents.shape)}; wanted [B, h, w, {self.config.latent_channels}]")
        x = latents.astype(self.dtype)
        return self.decoder(self.from_latents(x) if self.config.latent_maps else x)

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, channels]."""
        return self.decode(self.encode(images).mean)


def check_images(images: jax.Array, by: int) -> None:
    """Raises ValueError where a side of images [B, H, W, channels] is no multiple of `by` pixels."""
    if images.shape[1] % by or images.shape[2] % by:
        raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels; sides must be multiples of {by}")


def scaled(config: Any, latents: jax.Array) -> jax.Array:
    """Latents as a diffusion model has them; `config` is any autoencoder's, with `scale` and `shift`."""
    return (latents - config.shift) * config.scale


def unscaled(config: Any, latents: jax.Array) -> jax.Array:
    """A diffusion model's latents as the decoder takes them."""
    return latents / config.scale + config.shift
