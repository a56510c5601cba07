"""The denoiser of latent diffusion: a UNet that reads a condition (Rombach et al., 2022; Podell et al., 2023, "SDXL").

One config covers Stable Diffusion 1 and 2, SDXL, AudioLDM's and InstructPix2Pix'.
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
from mmjax.nn.stack import check_remat
from mmjax.nn.time_embedding import frequencies


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and options.

    Attributes:
        in_channels, out_channels: of the noisy latent (and what stands beside it), and of the prediction.
        widths: channels of each level; each but the last halves the sides.
        blocks: residual blocks of a level on the way down; one more on the way up.
        layers: transformer layers behind each block of a level, 0 where there are none.
        middle_layers: of the innermost map, 0 where it has no transformer.
        num_heads: of each level's transformers; the middle has the last.
        context_width: channels of a condition's tokens; None: transformers read the map itself (AudioLDM).
        pooled_width: channels of a condition's pooled vector where the time's embedding has it ("none": 0).
        pooled: how: "none", "added" to the time through a map of its own, "beside" it (AudioLDM), or "sizes": with
            `num_sizes` numbers, each embedded with `size_width` channels, through two maps (SDXL).
        num_sizes, size_width: see there.
        groups, norm_eps: of the norms.
        sine_first: whether the sines of a time come before its cosines.
        frequency_shift: taken off the number of frequencies that they are spaced by.
        sample_size: places of a side of the latent that it was trained with; any other works.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    layers: tuple[int, ...] = (1, 1, 1, 0)
    middle_layers: int = 1
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    context_width: int | None = 768
    pooled: str = "none"
    pooled_width: int = 0
    num_sizes: int = 0
    size_width: int = 0
    groups: int = 32
    norm_eps: float = 1e-5
    sine_first: bool = False
    frequency_shift: float = 0.0
    sample_size: int = 64

    kind: ClassVar[str] = "unet"

    def __post_init__(self):
        levels = len(self.widths)
        for name in ("layers", "num_heads"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"unet.{name} has {len(getattr(self, name))} entries, widths has {levels}")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % self.groups or width % heads:
                raise ConfigError(f"unet.widths: {width} is not a multiple of groups {self.groups} and heads {heads}")
        if self.pooled not in ("none", "added", "beside", "sizes"):
            raise ConfigError(f'unet.pooled is {self.pooled!r}; there are "none", "added", "beside", "sizes"')
        if (self.pooled != "none") != bool(self.pooled_width):
            raise ConfigError(f"unet.pooled is {self.pooled!r} with pooled_width {self.pooled_width}")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        side = 2 ** (len(self.widths) - 1)
        return (side, side, self.in_channels)

    @property
    def time_width(self) -> int:
        """Channels of the embedded time."""
        return 4 * self.widths[0]


class UNet(nn.Module):
    """(noisy latent, time, condition) -> prediction.

    Parameters conv_in; time_1, time_2; pooled_1, pooled_2 as the config says; down_{l}_{b}, down_attn_{l}_{b},
    fall_{l}; middle_1, middle_attn, middle_2; up_{l}_{b}, up_attn_{l}_{b}, rise_{l}; norm, conv_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the transformers' layers.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, h, w, in], times [B] or a scalar -> [B, h, w, out].

        Args:
            x: the noisy latent, scaled as the sampler says.
            times: of training.
            condition: `sequence` [B, N, C] with `mask`, `pooled` [B, P], and `extras["sizes"]` [B, S], as the config
                has them; `extras["residuals"]`, what is added to the maps that the way up reads: see `ControlNet`.

        Raises:
            ValueError: a latent of another number of channels, a condition without what the config reads, or another
                number of residuals than there are maps.
        """
        c = self.config
        condition = Condition(None) if condition is None else condition
        x, time, skips = self._half(x, times, condition)
        residuals = (condition.extras or {}).get("residuals")
        if residuals is not None:
            if len(residuals) != len(skips) + 1:
                raise ValueError(f"{len(residuals)} residuals for {len(skips)} maps on the way down and the middle")
            *skips, x = (map_ + added.astype(self.dtype) for map_, added in zip([*skips, x], residuals, strict=True))
            skips = list(skips)
        for level in reversed(range(len(c.widths))):
            for number in range(c.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._block(c.widths[level], f"up_{level}_{number}")(x, time)
                x = self._attend(x, level, f"up_attn_{level}_{number}", condition.sequence, condition.mask)
            if level:
                x = Conv(x.shape[-1], padding=1, dtype=self.dtype, name=f"rise_{level}")(risen(x, skips[-1].shape[1:3]))
        x = jax.nn.silu(GroupNorm(c.groups, c.norm_eps, self.dtype, name="norm")(x))
        return Conv(c.out_channels, padding=1, dtype=self.dtype, name="conv_out")(x)

    def _half(
        self, x: jax.Array, times: jax.Array, condition: Condition, hint: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """The middle, the embedded time, and the maps on the way down; `hint` is added to the first."""
        c = self.config
        check_remat(self.remat)
        if x.ndim != 4 or x.shape[-1] != c.in_channels:
            raise ValueError(f"latents are {tuple(x.shape)}; wanted [B, h, w, {c.in_channels}]")
        if c.context_width is not None and (
            condition.sequence is None or condition.sequence.shape[-1] != c.context_width
        ):
            found = None if condition.sequence is None else tuple(condition.sequence.shape)
            raise ValueError(f"the condition's sequence is {found}; wanted [B, N, {c.context_width}]")
        time = self._time(jnp.broadcast_to(times, x.shape[:1]), condition)
        reads = condition.sequence, condition.mask
        x = Conv(c.widths[0], padding=1, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        x = constrain(x if hint is None else x + hint, "batch", None, None, "act_embed")
        skips, last = [x], len(c.widths) - 1
        for level, width in enumerate(c.widths):
            for number in range(c.blocks):
                x = self._block(width, f"down_{level}_{number}")(x, time)
                x = self._attend(x, level, f"down_attn_{level}_{number}", *reads)
                skips.append(x)
            if level < last:
                x = Conv(width, stride=2, padding=1, dtype=self.dtype, name=f"fall_{level}")(x)
                skips.append(x)
        x = self._block(x.shape[-1], "middle_1")(x, time)
        if c.middle_layers:
            x = self._transformer(last, c.middle_layers, "middle_attn")(x, *reads)
        return self._block(x.shape[-1], "middle_2")(x, time), time, skips

    def _time(self, times: jax.Array, condition: Condition) -> jax.Array:
        c = self.config

        def linear(name, x):
            axes = ("feature", "embed")
            return Linear((c.time_width,), axes, use_bias=True, dtype=self.dtype, name=name)(x.astype(self.dtype))

        def embedded(values, width):
            return frequencies(values, width, c.sine_first, c.frequency_shift)

        time = linear("time_2", jax.nn.silu(linear("time_1", embedded(times, c.widths[0]))))
        if c.pooled == "none":
            return time
        if condition.pooled is None or condition.pooled.shape[-1] != c.pooled_width:
            found = None if condition.pooled is None else tuple(condition.pooled.shape)
            raise ValueError(f"the condition's pooled vector is {found}; wanted [B, {c.pooled_width}]")
        pooled = condition.pooled
        if c.pooled == "sizes":
            sizes = embedded(condition.extras["sizes"], c.size_width).reshape(pooled.shape[0], -1)
            pooled = jnp.concatenate([pooled.astype(jnp.float32), sizes], axis=-1)
            return time + linear("pooled_2", jax.nn.silu(linear("pooled_1", pooled)))
        pooled = linear("pooled_1", pooled)
        return time + pooled if c.pooled == "added" else jnp.concatenate([time, pooled], axis=-1)

    def _block(self, width: int, name: str) -> ResBlock:
        return ResBlock(width, self.config.groups, self.config.norm_eps, dtype=self.dtype, name=name)

    def _transformer(self, level: int, layers: int, name: str) -> MapTransformer:
        c = self.config
        return MapTransformer(
            c.num_heads[level], layers, c.groups, c.context_width, self.dtype, self.remat, name=name
        )

    def _attend(self, x, level: int, name: str, *reads) -> jax.Array:
        layers = self.config.layers[level]
        return self._transformer(level, layers, name)(x, *reads) if layers else x

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        return self(x, jnp.zeros(x.shape[0]), self._nothing(x.shape[0]))

    def _nothing(self, batch: int) -> Condition:
        """A condition of zeros."""
        c = self.config
        sequence = None if c.context_width is None else jnp.zeros((batch, 1, c.context_width))
        pooled = jnp.zeros((batch, c.pooled_width)) if c.pooled_width else None
        extras = {"sizes": jnp.zeros((batch, c.num_sizes))} if c.pooled == "sizes" else None
        return Condition(sequence, None, pooled, extras)
