"""A box becomes one token: several maps read by RoIAlign, added up, with the box's place.

Zhang et al., 2023, "GPT4RoI: Instruction tuning large language model on region-of-interest". Maps of one size (several
layers of a ViT) are first brought to a pyramid and exchange channels with their neighbours in it.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.nn.full_conv import Conv
from mmjax.nn.group_norm import GroupNorm
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.regions import roi_align
from mmjax.projectors.regions.levels import check_levels, check_widths


@dataclasses.dataclass(frozen=True)
class RoITokenConfig:
    """Sizes and options.

    Attributes:
        in_widths: channels of each map, finest first.
        width: D of the LLM.
        hidden: channels of the maps behind the first convolution.
        upsample: whether maps of one size become a pyramid, each twice as large as the next.
        fusions: how many times maps exchange channels.
        groups: of the norms there.
        out_size: cells of a side of the grid in a box.
        sampling_ratio: samples of a cell along each axis.
        place_hidden, token_width: widths on the way of the box's place, and of a token before it goes to D.
        norm_eps: of all norms.
    """

    in_widths: tuple[int, ...]
    width: int
    hidden: int = 1024
    upsample: bool = True
    fusions: int = 5
    groups: int = 64
    out_size: int = 14
    sampling_ratio: int = 2
    place_hidden: int = 256
    token_width: int = 1024
    norm_eps: float = 1e-5

    kind: ClassVar[str] = "roi_token"
    takes: ClassVar[str] = "boxes"
    tokens: ClassVar[int] = 1

    def __post_init__(self):
        check_widths(self.kind, self.in_widths)
        if self.fusions < 0:
            raise ConfigError(f"roi_token.fusions must be at least 0, got {self.fusions}")
        if self.fusions and (self.hidden % self.groups or self.hidden % 4):
            raise ConfigError(f"roi_token.hidden {self.hidden} is not a multiple of groups {self.groups} and of 4")


def stretch(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *shape, C], bilinear with corner places on corner places."""

    def matrix(source, target):
        at = np.linspace(0, source - 1, target)[:, None]
        return np.maximum(1 - np.abs(at - np.arange(source)), 0).astype(np.float32)

    if x.shape[1:3] == tuple(shape):
        return x
    rows, columns = matrix(x.shape[1], shape[0]), matrix(x.shape[2], shape[1])
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x.astype(jnp.float32), columns, precision="highest").astype(x.dtype)


def coordinates(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, h, w, C + 2], with each place's column and row from -1 to 1 behind its channels."""
    batch, height, width = x.shape[:3]
    columns, rows = jnp.meshgrid(jnp.linspace(-1, 1, width), jnp.linspace(-1, 1, height))
    places = jnp.broadcast_to(jnp.stack([columns, rows], axis=-1), (batch, height, width, 2))
    return jnp.concatenate([x, places.astype(x.dtype)], axis=-1)


def exchange(levels: Sequence[jax.Array]) -> list[jax.Array]:
    """Each map keeps half of its channels and takes a quarter from the coarser map and one from the finer.

    The coarser one gives its last quarter, the finer one its third; at the ends a map takes its own.
    """
    half = levels[0].shape[-1] // 2
    quarter = half // 2
    out = []
    for number, x in enumerate(levels):
        coarser, finer = levels[min(number + 1, len(levels) - 1)], levels[max(number - 1, 0)]
        parts = coarser[..., half + quarter :], finer[..., half : half + quarter]
        out.append(jnp.concatenate([x[..., :half], *(stretch(part, x.shape[1:3]) for part in parts)], axis=-1))
    return out


class RoIToken(nn.Module):
    """Maps and boxes to tokens.

    Parameters input_{level} and, for each fusion, fusion_{i}/kernel, fusion_{i}_norm; level_{level}; flat; place_1,
    place_1_norm, place_2, place_2_norm; out.
    """

    config: RoITokenConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], regions: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] and boxes float [B, R, 4], as shares of the image's sides -> [B, R, 1, D].

        Raises:
            ValueError: shapes that do not fit.
        """
        c = self.config
        check_levels(c.kind, c.in_widths, levels, regions)
        levels = [level.astype(self.dtype) for level in levels]
        if c.upsample:
            powers = [2**number for number in reversed(range(len(levels)))]
            levels = [
                stretch(level, (level.shape[1] * power, level.shape[2] * power))
                for level, power in zip(levels, powers, strict=True)
            ]
        levels = self._fused(levels)
        batch, number, total = *regions.shape[:2], 0.0
        for index, level in enumerate(levels):
            size = (c.out_size, c.out_size)
            cells = roi_align(level, regions, size, level.shape[1:3], c.sampling_ratio)
            conv = Conv(c.hidden, 3, padding=1, dtype=self.dtype, name=f"level_{index}")
            total = total + conv(cells.reshape(-1, *cells.shape[2:]))

        def linear(name, width, axes=("feature", "embed"), in_dims=1):
            return Linear((width,), axes, in_dims, use_bias=True, dtype=self.dtype, name=name)

        x = jax.nn.relu(total).reshape(batch, number, *total.shape[1:])
        x = linear("flat", c.token_width, ("patch", "patch", "feature", "embed"), 3)(x)
        place = regions.astype(self.dtype)
        for step, width in ((1, c.place_hidden), (2, c.token_width)):
            place = jax.nn.relu(linear(f"place_{step}", width)(place))
            place = LayerNorm(c.norm_eps, self.dtype, name=f"place_{step}_norm")(place)
        return linear("out", c.width)(x + place)[:, :, None]

    def _fused(self, levels: list[jax.Array]) -> list[jax.Array]:
        c = self.config
        levels = [
            Conv(c.hidden, 1, dtype=self.dtype, name=f"input_{number}")(coordinates(level))
            for number, level in enumerate(levels)
        ]
        for number in range(c.fusions):
            conv = Conv(c.hidden, 3, padding=1, use_bias=False, dtype=self.dtype, name=f"fusion_{number}")
            norm = GroupNorm(c.groups, c.norm_eps, self.dtype, name=f"fusion_{number}_norm")
            levels = [jax.nn.relu(norm(conv(level))) for level in exchange(levels)]
        return levels
