"""Spectrograms to sound: the generator of HiFi-GAN (Kong et al., 2020)."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.distributed.rules import constrain
from mmjax.generators.part_model import PartModel
from mmjax.nn.full_conv import channels_axis
from mmjax.nn.linear import fan_in_normal
from mmjax.nn.sequence_conv import SequenceConv

# Places that the first and the last convolution see.
OUTER = 7
# Of what goes into the last convolution, whatever the config's is.
LAST_SLOPE = 0.01


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes and options.

    Attributes:
        num_mels: channels of a frame of the logarithmic mel spectrogram.
        width: channels before the first level; each level has half as many as the one before.
        rates: how many times longer each level makes the sequence.
        windows: places of each level's transposed convolution, at least its rate.
        block_windows: windows of the residual blocks of every level, whose mean it gives; odd.
        dilations: of each of those blocks, of one pair of convolutions after another.
        slope: of the activations, below 0.
        normalize: whether spectrograms are brought to the mean and spread of training first.
        sample_rate: samples of a second.
    """

    num_mels: int = 80
    width: int = 512
    rates: tuple[int, ...] = (4, 4, 4, 4)
    windows: tuple[int, ...] = (8, 8, 8, 8)
    block_windows: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    slope: float = 0.1
    normalize: bool = True
    sample_rate: int = 16000

    kind: ClassVar[str] = "vocoder"

    def __post_init__(self):
        if len(self.rates) != len(self.windows) or not self.rates:
            raise ConfigError(f"vocoder.windows has {len(self.windows)} entries, rates has {len(self.rates)}")
        if len(self.block_windows) != len(self.dilations) or not self.dilations:
            raise ConfigError(
                f"vocoder.dilations has {len(self.dilations)} entries, block_windows has {len(self.block_windows)}"
            )
        for rate, window in zip(self.rates, self.windows, strict=True):
            if window < rate:
                raise ConfigError(f"vocoder.windows: {window} is less than its rate {rate}, which leaves gaps")
        for window in self.block_windows:
            if window % 2 == 0:
                raise ConfigError(f"vocoder.block_windows: {window} is not odd")
        if self.width >> len(self.rates) < 1:
            raise ConfigError(f"vocoder.width {self.width} cannot be halved {len(self.rates)} times")

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape of the smallest spectrogram that `create` may be called with."""
        return (1, self.num_mels)

    @property
    def hop(self) -> int:
        """Samples for each frame."""
        return math.prod(self.rates)

    def num_samples(self, frames: int) -> int:
        """How many samples `frames` frames become: `hop` times as many, but for windows that leave one over."""
        for rate, window in zip(self.rates, self.windows, strict=True):
            frames = (frames - 1) * rate + window - 2 * ((window - rate) // 2)
        return frames


class Rise(nn.Module):
    """A transposed convolution. Parameters kernel [size, in, features], bias [features].

    Attributes:
        features: channels out.
        size, rate: places that each place is spread over, and from one to the next.
        dtype: compute dtype.
    """

    features: int
    size: int
    rate: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, in] -> [B, (T - 1) rate + size - 2 ((size - rate) // 2), features]."""
        shape = (self.size, x.shape[-1], self.features)
        axes = ("patch", "feature", channels_axis(self.features))
        init = nn.with_logical_partitioning(fan_in_normal(shape[1:2]), axes)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[-1:])
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        # Spread over its places, x meets the kernel the other way round.
        side = self.size - 1 - (self.size - self.rate) // 2
        dimensions = ("NWC", "WIO", "NWC")
        x = x.astype(self.dtype)
        y = jax.lax.conv_general_dilated(x, kernel[::-1], (1,), ((side, side),), (self.rate,), None, dimensions)
        return y + bias


class SoundBlock(nn.Module):
    """x + two convolutions of it, for each dilation in turn. Parameters wide_{n}, narrow_{n}.

    Attributes:
        size, dilations, slope: see `VocoderConfig`.
        dtype: compute dtype.
    """

    size: int
    dilations: tuple[int, ...]
    slope: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> the same."""
        for number, dilation in enumerate(self.dilations):
            h = x
            for name, apart in (("wide", dilation), ("narrow", 1)):
                h = jax.nn.leaky_relu(h, self.slope)
                h = SequenceConv(x.shape[-1], self.size, apart, self.dtype, name=f"{name}_{number}")(h)
            x = x + h
        return x


class Vocoder(nn.Module):
    """Parameters mean, scale [num_mels], which count where spectrograms are normalised; conv_in; rise_{l}, and
    block_{l}_{k} for each window of a level; conv_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: not used; there is nothing stacked.
    """

    config: VocoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, spectrograms: jax.Array) -> jax.Array:
        """Logarithmic mel spectrograms [B, T, num_mels] -> waveforms float32 [B, num_samples(T)] from -1 to 1.

        Raises:
            ValueError: spectrograms with another number of channels.
        """
        c = self.config
        if spectrograms.ndim != 3 or spectrograms.shape[-1] != c.num_mels:
            raise ValueError(f"spectrograms are {tuple(spectrograms.shape)}; wanted [B, T, {c.num_mels}]")

        def vector(name, init):
            return self.param(name, nn.with_logical_partitioning(init, ("feature",)), (c.num_mels,))

        mean, scale = vector("mean", nn.initializers.zeros), vector("scale", nn.initializers.ones)
        x = spectrograms.astype(jnp.float32)
        x = (x - mean.astype(jnp.float32)) / scale.astype(jnp.float32) if c.normalize else x
        x = SequenceConv(c.width, OUTER, dtype=self.dtype, name="conv_in")(x)
        for level, (rate, window) in enumerate(zip(c.rates, c.windows, strict=True)):
            x = constrain(jax.nn.leaky_relu(x, c.slope), "batch", None, "act_embed")
            x = Rise(c.width >> (level + 1), window, rate, self.dtype, name=f"rise_{level}")(x)
            sizes = enumerate(zip(c.block_windows, c.dilations, strict=True))
            blocks = [SoundBlock(*each, c.slope, self.dtype, name=f"block_{level}_{number}") for number, each in sizes]
            x = sum(block(x) for block in blocks) / len(blocks)
        x = SequenceConv(1, OUTER, dtype=self.dtype, name="conv_out")(jax.nn.leaky_relu(x, LAST_SLOPE))
        return jnp.tanh(x[..., 0].astype(jnp.float32))

    def create(self, spectrograms: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. spectrograms [B, T, num_mels]."""
        return self(spectrograms)


class VocoderModel(PartModel):
    """A vocoder as a model of its own."""

    @property
    def module(self) -> Vocoder:
        """The flax module."""
        return Vocoder(self.config, jnp.dtype(self.dtype), self.remat)

    def __call__(self, params: dict[str, Any], spectrograms: jax.Array) -> jax.Array:
        """See `Vocoder.__call__`."""
        return self._apply(params, spectrograms)
