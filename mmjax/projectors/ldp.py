"""MobileVLM's lightweight downsample projectors: a small MLP, then convolutions that keep where things stand.

Chu et al., 2023 ("MobileVLM", LDP); Chu et al., 2024 ("MobileVLM V2", LDPv2).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.data.contracts import Media
from mmjax.nn.conv import DepthwiseConv, SqueezeExcite
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS
from mmjax.nn.norms import LayerNorm
from mmjax.nn.resize import resize
from mmjax.projectors.grids import Grid, check_grid, count_grids, join_grids, split_grids


@dataclasses.dataclass(frozen=True)
class LDPConfig:
    """LDP: half the tokens on each side, by a depthwise convolution of stride 2.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        grid: height and width of a grid of features.
        norm_eps: of the norms behind convolutions.
    """

    in_width: int
    width: int
    grid: Grid
    norm_eps: float = 1e-5

    kind: ClassVar[str] = "ldp"

    def __post_init__(self):
        check_grid("ldp projector: grid", self.grid)

    @property
    def out_grid(self) -> Grid:
        """Height and width of a grid of tokens."""
        return -(-self.grid[0] // 2), -(-self.grid[1] // 2)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: a quarter of its features, sides rounded up.

        Raises:
            ConfigError: its features are no whole number of grids, or its grid is another.
        """
        return count_grids(self.kind, self.grid, num_features, grid) * self.out_grid[0] * self.out_grid[1]


@dataclasses.dataclass(frozen=True)
class LDPv2Config:
    """LDPv2: average pooling to `out_grid`, then a depthwise convolution added to what it reads.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        grid: height and width of a grid of features.
        out_grid: height and width of a grid of tokens.
    """

    in_width: int
    width: int
    grid: Grid
    out_grid: Grid = (12, 12)

    kind: ClassVar[str] = "ldp_v2"

    def __post_init__(self):
        check_grid("ldp_v2 projector: grid", self.grid)
        check_grid("ldp_v2 projector: out_grid", self.out_grid)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: those of `out_grid`, once for each of its grids.

        Raises:
            ConfigError: its features are no whole number of grids, or its grid is another.
        """
        return count_grids(self.kind, self.grid, num_features, grid) * self.out_grid[0] * self.out_grid[1]


def _maps(width: int, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """fc2(gelu(fc1(x))), inside a compact method; x [..., in_width] -> [..., D]."""
    x = Linear((width,), ("feature", "mlp"), use_bias=True, dtype=dtype, name="fc1")(x)
    return Linear((width,), ("mlp", "embed"), use_bias=True, dtype=dtype, name="fc2")(ACTIVATIONS["gelu"](x))


def _squeezed(channels: int) -> int:
    """A quarter of the channels as a multiple of 8, not far below (Howard et al., 2019, "MobileNetV3")."""
    wanted = channels // 4
    rounded = max(8, (wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class InvertedResidual(nn.Module):
    """MobileNetV3's block without expansion, with layer norms: depthwise, squeeze-excite, 1 x 1; stride 1 adds x.

    Parameters: depthwise/kernel [3, 3, 1, D], depthwise_norm, se, pointwise/kernel [D, D], pointwise_norm.
    """

    stride: int
    norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, D] -> [B, ceil(h / stride), ceil(w / stride), D]."""
        width = x.shape[-1]
        y = DepthwiseConv(3, self.stride, dtype=self.dtype, name="depthwise")(x)
        y = jax.nn.hard_swish(LayerNorm(self.norm_eps, self.dtype, name="depthwise_norm")(y))
        y = SqueezeExcite(_squeezed(width), jax.nn.relu, jax.nn.hard_sigmoid, self.dtype, name="se")(y)
        y = Linear((width,), ("feature", "embed"), dtype=self.dtype, name="pointwise")(y)
        y = LayerNorm(self.norm_eps, self.dtype, name="pointwise_norm")(y)
        return x + y if self.stride == 1 else y


class LDPProjector(nn.Module):
    """Features [B, K * h * w, in_width] -> tokens [B, K * M, D]. Parameters fc1, fc2, keep and halve."""

    config: LDPConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        x = _maps(c.width, split_grids(media.values, c.grid), self.dtype)
        x = InvertedResidual(1, c.norm_eps, self.dtype, name="keep")(x)
        x = InvertedResidual(2, c.norm_eps, self.dtype, name="halve")(x)
        return join_grids(media, x.reshape(x.shape[0], -1, c.width), c.grid)


class LDPv2Projector(nn.Module):
    """Features [B, K * h * w, in_width] -> tokens [B, K * M, D]. Parameters fc1, fc2, position/{kernel, bias}."""

    config: LDPv2Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        x = _maps(c.width, split_grids(media.values, c.grid), self.dtype)
        x = resize(x, c.out_grid, "average")
        x = x + DepthwiseConv(3, use_bias=True, dtype=self.dtype, name="position")(x)
        return join_grids(media, x.reshape(x.shape[0], -1, c.width), c.grid)
