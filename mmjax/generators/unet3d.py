"""The denoiser of videos by latent diffusion: a UNet of maps with convolutions and transformers through time between.

Wang et al., 2023, "ModelScope Text-to-Video Technical Report"; Zeroscope has it too.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.distributed.rules import constrain
from mmjax.generators.map_transformer import MapTransformer
from mmjax.nn.full_conv import Conv
from mmjax.nn.group_norm import GroupNorm
from mmjax.nn.linear import Linear
from mmjax.nn.res_block import ResBlock
from mmjax.nn.resize import risen
from mmjax.nn.sequence_conv import SequenceConv
from mmjax.nn.stack import check_remat
from mmjax.nn.time_embedding import frequencies

# Heads of the transformer before the first level, whatever its width is.
FIRST_HEADS = 8
# Convolutions of a block through time.
TIME_CONVS = 4


@dataclasses.dataclass(frozen=True)
class UNet3DConfig:
    """Sizes and options.

    Attributes:
        in_channels, out_channels: of the noisy latent and of the prediction.
        widths: channels of each level; each but the last halves the sides, and never the frames.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attends: whether behind each block of a level there are transformers; the innermost map always has them.
        head_dim: channels of every head of attention.
        context_width: channels of a condition's tokens.
        groups, norm_eps: of the norms.
        sample_size: places of a side of the latent that it was trained with; any other works.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    attends: tuple[bool, ...] = (True, True, True, False)
    head_dim: int = 64
    context_width: int = 1024
    groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 32

    kind: ClassVar[str] = "unet3d"

    def __post_init__(self):
        if len(self.attends) != len(self.widths):
            raise ConfigError(f"unet3d.attends has {len(self.attends)} entries, widths has {len(self.widths)}")
        for width in self.widths:
            if width % self.groups or width % self.head_dim:
                raise ConfigError(
                    f"unet3d.widths: {width} is not a multiple of groups {self.groups} and head_dim {self.head_dim}"
                )

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        side = 2 ** (len(self.widths) - 1)
        return (1, side, side, self.in_channels)

    @property
    def time_width(self) -> int:
        """Channels of the embedded time."""
        return 4 * self.widths[0]


class TimeConv(nn.Module):
    """x + four convolutions of every place through time. Parameters norm_{n}, conv_{n}.

    Attributes:
        groups, eps: of the norms, over all frames.
        dtype: compute dtype.
    """

    groups: int
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, h, w, C] -> the same."""
        h = x
        for number in range(1, TIME_CONVS + 1):
            h = jax.nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name=f"norm_{number}")(h))
            h = SequenceConv(x.shape[-1], dtype=self.dtype, name=f"conv_{number}")(h)
        return x + h


class UNet3D(nn.Module):
    """(noisy latent of a video, time, condition) -> prediction.

    Parameters conv_in; time_1, time_2; frames_in; for each block of a level down_{l}_{b}, down_conv_{l}_{b}, and
    down_attn_{l}_{b}, down_time_{l}_{b} where the level attends; fall_{l}; middle_1, middle_conv_1, middle_attn,
    middle_time, middle_2, middle_conv_2; the same way up, with rise_{l}; norm, conv_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the transformers' layers.
    """

    config: UNet3DConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, T, h, w, in], times [B] or a scalar -> [B, T, h, w, out].

        Args:
            x: the noisy latent, scaled as the sampler says.
            times: of training.
            condition: `sequence` [B, N, C] with `mask`; every frame reads it.

        Raises:
            ValueError: a latent of another number of channels, or no condition of the config's width.
        """
        c = self.config
        check_remat(self.remat)
        if x.ndim != 5 or x.shape[-1] != c.in_channels:
            raise ValueError(f"latents are {tuple(x.shape)}; wanted [B, T, h, w, {c.in_channels}]")
        sequence = None if condition is None else condition.sequence
        if sequence is None or sequence.shape[-1] != c.context_width:
            found = None if sequence is None else tuple(sequence.shape)
            raise ValueError(f"the condition's sequence is {found}; wanted [B, N, {c.context_width}]")
        batch, frames = x.shape[:2]
        each = lambda rows: None if rows is None else jnp.repeat(rows, frames, axis=0)  # noqa: E731
        time = each(self._time(jnp.broadcast_to(times, (batch,))))
        reads = each(sequence), each(condition.mask)
        # Frames lie in the batch wherever they do not see each other.
        x = x.astype(self.dtype).reshape(-1, *x.shape[2:])
        x = Conv(c.widths[0], padding=1, dtype=self.dtype, name="conv_in")(x)
        x = constrain(x, "batch", None, None, "act_embed")
        x = self._through_time(
            x, frames, MapTransformer(
                FIRST_HEADS, 1, c.groups, None, self.dtype, self.remat, FIRST_HEADS * c.head_dim, True, name="frames_in"
            ), None
        )  # fmt: skip
        skips, last = [x], len(c.widths) - 1
        for level, width in enumerate(c.widths):
            for number in range(c.blocks):
                x = self._block(x, time, frames, width, "down", f"_{level}_{number}")
                x = self._attend(x, reads, frames, "down", f"_{level}_{number}") if c.attends[level] else x
                skips.append(x)
            if level < last:
                x = Conv(width, stride=2, padding=1, dtype=self.dtype, name=f"fall_{level}")(x)
                skips.append(x)
        x = self._block(x, time, frames, x.shape[-1], "middle", "_1")
        x = self._attend(x, reads, frames, "middle", "")
        x = self._block(x, time, frames, x.shape[-1], "middle", "_2")
        for level in reversed(range(last + 1)):
            for number in range(c.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(x, time, frames, c.widths[level], "up", f"_{level}_{number}")
                x = self._attend(x, reads, frames, "up", f"_{level}_{number}") if c.attends[level] else x
            if level:
                x = Conv(x.shape[-1], padding=1, dtype=self.dtype, name=f"rise_{level}")(risen(x, skips[-1].shape[1:3]))
        x = jax.nn.silu(GroupNorm(c.groups, c.norm_eps, self.dtype, name="norm")(x))
        x = Conv(c.out_channels, padding=1, dtype=self.dtype, name="conv_out")(x)
        return x.reshape(batch, frames, *x.shape[1:])

    def _time(self, times: jax.Array) -> jax.Array:
        def linear(name, x):
            axes = ("feature", "embed")
            width = self.config.time_width
            return Linear((width,), axes, use_bias=True, dtype=self.dtype, name=name)(x.astype(self.dtype))

        return linear("time_2", jax.nn.silu(linear("time_1", frequencies(times, self.config.widths[0]))))

    def _block(self, x, time, frames: int, width: int, way: str, place: str) -> jax.Array:
        c = self.config
        x = ResBlock(width, c.groups, c.norm_eps, dtype=self.dtype, name=f"{way}{place}")(x, time)
        return self._through_time(x, frames, TimeConv(c.groups, dtype=self.dtype, name=f"{way}_conv{place}"))

    def _attend(self, x, reads, frames: int, way: str, place: str) -> jax.Array:
        c = self.config
        heads = x.shape[-1] // c.head_dim

        def transformer(name, width, through_time):
            return MapTransformer(
                heads, 1, c.groups, width, self.dtype, self.remat, None, through_time, name=f"{way}_{name}{place}"
            )

        x = transformer("attn", c.context_width, False)(x, *reads)
        return self._through_time(x, frames, transformer("time", None, True), None)

    @staticmethod
    def _through_time(x: jax.Array, frames: int, module: nn.Module, *more) -> jax.Array:
        """x [B * T, h, w, C] through a module that takes [B, T, h, w, C]."""
        return module(x.reshape(-1, frames, *x.shape[1:]), *more).reshape(x.shape)

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, T, h, w, in]."""
        sequence = jnp.zeros((x.shape[0], 1, self.config.context_width))
        return self(x, jnp.zeros(x.shape[0]), Condition(sequence))
