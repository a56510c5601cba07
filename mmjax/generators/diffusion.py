"""A generator by latent diffusion: a denoiser, the autoencoder of its latents, a schedule (Rombach et al., 2022).

    media --encode--> latents --noise--> denoiser(noisy, time, Condition) -> prediction        in training
    noise --schedule's steps of the denoiser--> latents --decode--> media                      in use
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.autoencoder import Autoencoder, AutoencoderConfig, scaled, unscaled
from mmjax.generators.mlp_denoiser import MLPDenoiser, MLPDenoiserConfig
from mmjax.generators.noise import add_noise, target
from mmjax.generators.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from mmjax.generators.pixart import PixArt, PixArtConfig
from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.generators.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.generators.unet3d import UNet3D, UNet3DConfig
from mmjax.generators.vocoder import Vocoder, VocoderConfig

# The one place where a denoiser's or an autoencoder's config meets its module.
DENOISERS = {UNetConfig: UNet, UNet3DConfig: UNet3D, PixArtConfig: PixArt, MLPDenoiserConfig: MLPDenoiser}
AUTOENCODERS = {
    AutoencoderConfig: Autoencoder,
    TinyAutoencoderConfig: TinyAutoencoder,
    PatchAutoencoderConfig: PatchAutoencoder,
}
DenoiserConfig = functools.reduce(operator.or_, DENOISERS)
LatentConfig = functools.reduce(operator.or_, AUTOENCODERS)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The parts.

    Attributes:
        denoiser: what predicts.
        autoencoder: of what latents are latents of.
        schedule: the noise of training and the sampler.
        size: (height, width) in pixels of what is drawn, of a sound (frames, channels) of its spectrogram; None: a
            square as large as the denoiser was trained with.
        frames: of what is drawn; None draws images. Each frame is a latent of its own.
        vocoder: makes a sound of what the autoencoder gives, a logarithmic mel spectrogram.
        negative_tokens: a text, as the generator's own encoder reads it, that guidance leads away from; (): guidance
            leads away from what the output projector makes of no signal, states of zeros.
        sketched: whether the denoiser sees, behind the channels of the noisy latent, those of a sketch of it:
            `extras["sketch"]` [B, h, w, C] of the condition, see `mmjax.output_projectors.sketch`.
    """

    denoiser: DenoiserConfig
    autoencoder: LatentConfig
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    size: tuple[int, int] | None = None
    frames: int | None = None
    vocoder: VocoderConfig | None = None
    negative_tokens: tuple[int, ...] = ()
    sketched: bool = False

    kind: ClassVar[str] = "diffusion"

    def __post_init__(self):
        out, latent = self.denoiser.out_channels, self.autoencoder.latent_channels
        if self.denoiser.in_channels != latent * (1 + self.sketched) or out not in (latent, 2 * latent):
            beside = f", and a sketch {latent} more" if self.sketched else ""
            raise ConfigError(
                f"diffusion.denoiser maps {self.denoiser.in_channels} channels to {out}; latents have {latent}{beside}"
            )
        by = self.autoencoder.downsampling
        if self.size is not None and any(side % by or side < by for side in self.size):
            raise ConfigError(f"diffusion.size is {self.size}; sides must be multiples of {by}")
        if (self.frames is not None) != (len(self.denoiser.feature_shape) == 4):
            raise ConfigError(f"diffusion.frames is {self.frames}, and the denoiser a {self.denoiser.kind}")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"diffusion.frames must be at least 1, got {self.frames}")
        mels, drawn = getattr(self.vocoder, "num_mels", None), self.latent_shape[1] * by
        if self.vocoder is not None and (mels, self.autoencoder.image_channels) != (drawn, 1):
            raise ConfigError(
                f"diffusion.vocoder reads one map of {mels} channels; the autoencoder gives "
                f"{self.autoencoder.image_channels} of {drawn}"
            )

    @property
    def condition_width(self) -> int:
        """Channels of a condition's tokens; where the denoiser reads none, of its pooled vector."""
        return self.denoiser.context_width or self.denoiser.pooled_width

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the smallest latent that `create` may be called with."""
        return self.denoiser.feature_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of what is drawn, [h, w, C] or [T, h, w, C]."""
        by, side = self.autoencoder.downsampling, self.denoiser.sample_size
        height, width = (side, side) if self.size is None else (part // by for part in self.size)
        lead = () if self.frames is None else (self.frames,)
        return (*lead, height, width, self.autoencoder.latent_channels)

    def check_encoder(self, encoder: Any) -> None:
        """Raises ConfigError unless the generator's text encoder, if there is one, gives what the denoiser reads."""
        if encoder is None and self.negative_tokens:
            raise ConfigError("diffusion.negative_tokens needs the generator's text encoder in generator_encoders")
        width = getattr(encoder, "width", None)
        if self.denoiser.context_width is None:
            width = getattr(encoder, "projection_dim", None)
        if encoder is not None and width != self.condition_width:
            raise ConfigError(
                f"the generator's encoder gives {width} channels, its denoiser reads {self.condition_width}"
            )


class Diffusion(nn.Module):
    """Parameters denoiser, autoencoder and, where there is one, vocoder.

    The last two compute in float32: their range is that of no other dtype.

    Attributes:
        config: the parts.
        dtype: compute dtype of the denoiser.
        remat: rematerialisation policy of its blocks.
    """

    config: DiffusionConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.denoiser = DENOISERS[type(c.denoiser)](c.denoiser, self.dtype, self.remat)
        self.autoencoder = AUTOENCODERS[type(c.autoencoder)](c.autoencoder)
        if c.vocoder is not None:
            self.vocoder = Vocoder(c.vocoder)

    def __call__(self, noisy: jax.Array, times: jax.Array, condition: Condition) -> jax.Array:
        """What the denoiser says of noisy latents [B, ..., h, w, C] at times [B], float32."""
        seen, condition = self._with_sketch(noisy, condition)
        said = self.denoiser(seen, times, self._sized(condition, noisy)).astype(jnp.float32)
        # What some say besides is a variance, which no sampler here reads.
        return said[..., : self.config.autoencoder.latent_channels]

    def _with_sketch(self, noisy: jax.Array, condition: Condition) -> tuple[jax.Array, Condition]:
        """What the denoiser sees, and the rest of the condition."""
        if not self.config.sketched:
            return noisy, condition
        extras = dict(condition.extras or {})
        sketch = extras.pop("sketch", None)
        if sketch is None or sketch.shape != noisy.shape:
            found = None if sketch is None else tuple(sketch.shape)
            raise ValueError(f"the condition's sketch is {found}; wanted {tuple(noisy.shape)}, as the latent")
        seen = jnp.concatenate([noisy, sketch.astype(noisy.dtype)], axis=-1)
        return seen, dataclasses.replace(condition, extras=extras or None)

    def _sized(self, condition: Condition, noisy: jax.Array) -> Condition:
        """With the size of what is made, where the denoiser was trained to read it and nothing is said of it."""
        reads = getattr(self.config.denoiser, "reads_size", False)
        if condition.extras is not None or not (reads or getattr(self.config.denoiser, "pooled", "") == "sizes"):
            return condition
        height, width = (side * self.config.autoencoder.downsampling for side in noisy.shape[-3:-1])
        rows = lambda *numbers: jnp.tile(jnp.asarray(numbers, jnp.float32), (len(noisy), 1))  # noqa: E731
        # Of SDXL: the size that an image had, where it was cut, and the size that is wanted.
        sizes = rows(height, width, 0, 0, height, width)
        extras = {"resolution": rows(height, width), "aspect_ratio": rows(height / width), "sizes": sizes}
        return dataclasses.replace(condition, extras=extras)

    def encode(self, media: jax.Array) -> jax.Array:
        """Media -> the middle of their latents [B, ..., h, w, C], as the denoiser knows them.

        Images [B, H, W, 3] and frames [B, T, H, W, 3] from -1 to 1; of sounds logarithmic mel spectrograms
        [B, frames, channels, 1].
        """
        encoded = self.autoencoder.encode(media.reshape(-1, *media.shape[-3:]))
        latents = scaled(self.config.autoencoder, getattr(encoded, "mean", encoded))
        return latents.reshape(*media.shape[:-3], *latents.shape[1:])

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, ..., h, w, C] -> images [B, H, W, 3], frames [B, T, H, W, 3] (0 to 1), sounds [B, samples]."""
        flat = unscaled(self.config.autoencoder, latents.astype(jnp.float32)).reshape(-1, *latents.shape[-3:])
        media = self.autoencoder.decode(flat)
        if self.config.vocoder is not None:
            return self.vocoder(media[..., 0])
        return jnp.clip(media / 2 + 0.5, 0, 1).reshape(*latents.shape[:-3], *media.shape[1:])

    def create(self, latents: jax.Array) -> None:
        """Touches every parameter once: what `init` runs. latents [B, ..., h, w, C]."""
        self.denoiser.create(latents)
        self.autoencoder.create(jnp.zeros((1, *self.config.autoencoder.feature_shape)))
        if self.config.vocoder is not None:
            self.vocoder.create(jnp.zeros((1, *self.config.vocoder.feature_shape)))


def denoising_loss(
    module: Diffusion,
    params: Mapping[str, Any],
    latents: jax.Array,
    condition: Condition,
    noise: jax.Array,
    times: jax.Array,
) -> jax.Array:
    """float32 [B]: mean squared difference of the denoiser's prediction and its target, see `noise.target`.

    Args:
        module, params: the generator.
        latents: [B, ..., h, w, C], clean.
        condition: of B rows.
        noise: of the latents' shape, normal.
        times: [B], whole ones of training, or any for straight lines.
    """
    config = module.config.schedule.noise
    latents = latents.astype(jnp.float32)
    said = module.apply({"params": params}, add_noise(config, latents, noise, times), times, condition)
    error = said - target(config, latents, noise, times)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def draw_noise(config: DiffusionConfig, rng: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Normal noise of a shape [B, ...] and times [B], evenly over those of training."""
    first, second = jax.random.split(rng)
    noise = config.schedule.noise
    if noise.flow:
        times = jax.random.uniform(second, shape[:1], maxval=float(noise.train_steps))
    else:
        times = jax.random.randint(second, shape[:1], 0, noise.train_steps)
    return jax.random.normal(first, shape), times


def draw(
    module: Diffusion,
    params: Mapping[str, Any],
    condition: Condition,
    without: Condition | None,
    steps: Steps,
    scale: jax.Array | float,
    noise: jax.Array,
    rng: jax.Array,
) -> jax.Array:
    """Media as `Diffusion.decode` gives them, drawn from noise by classifier-free guidance.

    Args:
        module, params: the generator.
        condition, without: of B rows each: what is asked for, and what guidance leads away from; None: there is no
            guidance, and half the work.
        steps: the sampler's table.
        scale: of guidance, see `guided`.
        noise: [B, ..., h, w, C], normal.
        rng: for samplers that add noise.
    """
    variables = {"params": params}
    both = condition
    if without is not None:
        both = jax.tree.map(lambda one, two: jnp.concatenate([one, two]), without, condition)
    denoise = lambda x, time, both: module.apply(variables, x, jnp.broadcast_to(time, x.shape[:1]), both)
    latents = sample(guided(denoise, scale, both), steps, first_latent(steps, noise), rng)
    return module.apply(variables, latents, method="decode")
