"""C-Abstractor: convolutional blocks around a pooling to a fixed grid (Cha et al., 2024, "Honeybee")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.conv import DepthwiseConv, SqueezeExcite
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.resize import resize
from mmjax.nn.stack import init_stack, run_stack
from mmjax.projectors.grids import Grid, check_grid, count_grids, join_grids, split_grids


@dataclasses.dataclass(frozen=True)
class AbstractorConfig:
    """Sizes of a C-Abstractor.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        grid: height and width of a grid of features.
        out_grid: height and width of a grid of tokens.
        hidden: channels of the blocks.
        depth: blocks before the pooling, and as many behind it.
        mlp_depth: linear maps behind the blocks, with an activation between.
        squeeze: share of a block's input channels that its squeeze-excite has.
        positions: whether a learned embedding is added to the features.
        end_tokens: learned tokens behind those of each grid.
        norm_eps: of the norms behind convolutions.
    """

    in_width: int
    width: int
    grid: Grid
    out_grid: Grid = (12, 12)
    hidden: int = 1024
    depth: int = 3
    mlp_depth: int = 2
    squeeze: float = 0.25
    positions: bool = True
    end_tokens: int = 0
    norm_eps: float = 1e-5

    kind: ClassVar[str] = "abstractor"

    def __post_init__(self):
        check_grid("abstractor projector: grid", self.grid)
        check_grid("abstractor projector: out_grid", self.out_grid)
        for name, least in (("depth", 1), ("mlp_depth", 1), ("end_tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"abstractor projector: {name} must be at least {least}, got {getattr(self, name)}"
                )
        if min(round(width * self.squeeze) for width in (self.in_width, self.hidden)) < 1:
            raise ConfigError(
                f"abstractor projector: squeeze {self.squeeze} leaves no channel of "
                f"{min(self.in_width, self.hidden)}"
            )

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: those of `out_grid` and the end tokens, once for each of its grids.

        Raises:
            ConfigError: its features are no whole number of grids, or its grid is another.
        """
        number = count_grids(self.kind, self.grid, num_features, grid)
        return number * (self.out_grid[0] * self.out_grid[1] + self.end_tokens)


class Bottleneck(nn.Module):
    """RegNet's block with depthwise convolution and squeeze-excite (Radosavovic et al., 2020), layer norms.

    silu(shortcut(x) + 1 x 1(se(3 x 3(1 x 1(x))))), a norm behind each convolution. The shortcut is a map with
    a norm where the channels change.
    """

    hidden: int
    squeeze: float
    norm_eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, hidden]."""

        def norm(name, y):
            return LayerNorm(self.norm_eps, self.dtype, name=f"{name}_norm")(y)

        def pointwise(name, y):
            return norm(name, Linear((self.hidden,), ("feature", "embed"), dtype=self.dtype, name=name)(y))

        act = jax.nn.silu
        y = act(pointwise("reduce", x))
        y = act(norm("depthwise", DepthwiseConv(dtype=self.dtype, name="depthwise")(y)))
        y = SqueezeExcite(round(x.shape[-1] * self.squeeze), act, dtype=self.dtype, name="se")(y)
        y = pointwise("expand", y)
        return act(y + (x if x.shape[-1] == self.hidden else pointwise("shortcut", x)))


class AbstractorProjector(nn.Module):
    """Features [B, K * h * w, in_width] -> tokens [B, K * M, D].

    Parameters: position [h * w, in_width]; first, the block that changes the channels; before [depth - 1, ...]
    and behind [depth, ...], the other blocks; fc1, fc2, ... {kernel, bias}; end [end_tokens, D].
    """

    config: AbstractorConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        x = split_grids(media.values, c.grid).astype(self.dtype)
        if c.positions:
            position = self._leaf("position", (c.grid[0] * c.grid[1], c.in_width), (None, "feature"))
            x = x + position.reshape(*c.grid, c.in_width)
        x = Bottleneck(c.hidden, c.squeeze, c.norm_eps, self.dtype, name="first")(x)
        x = self._blocks("before", c.depth - 1, x)
        x = resize(x, c.out_grid, "average")
        x = self._blocks("behind", c.depth, x)
        x = x.reshape(x.shape[0], -1, c.hidden)
        for number in range(1, c.mlp_depth + 1):
            x = jax.nn.silu(x) if number > 1 else x
            x = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name=f"fc{number}")(x)
        if c.end_tokens:
            end = self._leaf("end", (c.end_tokens, c.width), (None, "embed"))
            x = jnp.concatenate([x, jnp.broadcast_to(end, (x.shape[0], *end.shape))], axis=1)
        return join_grids(media, x, c.grid)

    def _leaf(self, name: str, shape: tuple[int, int], axes: tuple[str | None, str]) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), axes)
        return self.param(name, init, shape).astype(self.dtype)

    def _blocks(self, name: str, number: int, x: jax.Array) -> jax.Array:
        """`number` equal blocks, stacked under `name`; x [B, h, w, hidden] -> the same."""
        c = self.config
        if not number:
            return x
        block = Bottleneck(c.hidden, c.squeeze, c.norm_eps, self.dtype, parent=None)
        if self.is_initializing():
            blocks = self.param(name, init_stack(block, number, x[:1]))
        else:
            blocks = self.get_variable("params", name)
        apply = lambda params, x, cache: (block.apply({"params": params}, x), cache)
        return run_stack(apply, blocks, x)[0]
