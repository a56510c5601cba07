"""Fewer tokens by joining neighbours: pixel shuffle, patch merger, pooling.

Chen et al., 2024 ("InternVL 1.5", pixel shuffle); Laurençon et al., 2024 ("Idefics3"); Wang et al., 2024
("Qwen2-VL", patch merger); Li et al., 2024 ("LLaVA-OneVision", pooled frames of a video).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import NORMS, NormConfig
from mmjax.nn.resize import resize
from mmjax.projectors.grids import Grid, check_grid, count_grids, join_grids, split_grids


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """Squares of `factor` x `factor` features become one token: their channels in a row, then a map.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        factor: side of a square.
        grid: height and width of an item's grid where an encoder resizes; None where it keeps native
            resolution and `Media.grid` says the shape of each item.
        order: how an item's features follow each other: "rows" of the grid, or "blocks", the features of one
            square together (as Qwen2-VL's processor has it); only "rows" needs to know the grid.
        norm: "layer" or "rms".
        norm_at: "before" (each feature, Qwen2-VL), "after" (what is joined, InternVL) or "none" (Idefics3).
        norm_eps: of the norm.
        hidden: width between two maps; 0: there is one map.
        activation: between two maps.
        bias: of the maps.
        joined: width of a map without bias right behind the joining, before the others (Mistral 3); 0: there is none.
    """

    in_width: int
    width: int
    factor: int = 2
    grid: Grid | None = None
    order: str = "rows"
    norm: str = "layer"
    norm_at: str = "none"
    norm_eps: float = 1e-6
    hidden: int = 0
    activation: str = "gelu"
    bias: bool = True
    joined: int = 0

    kind: ClassVar[str] = "merge"

    def __post_init__(self):
        check_choice("merge projector order", self.order, ("rows", "blocks"))
        check_choice("merge projector norm", self.norm, tuple(NORMS))
        check_choice("merge projector norm_at", self.norm_at, ("none", "before", "after"))
        check_activation("merge projector activation", self.activation)
        if self.factor < 1:
            raise ConfigError(f"merge projector: factor must be at least 1, got {self.factor}")
        if self.grid is not None:
            check_grid("merge projector: grid", self.grid)
            self._check_sides(*self.grid)

    def _check_sides(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"merge projector: a grid of {height} x {width} features is not divisible by factor {self.factor}"
            )

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: its features over the square of the factor.

        Raises:
            ConfigError: features that are not the grid's, or sides that the factor does not divide.
        """
        if self.grid is not None:
            count_grids(self.kind, self.grid, num_features, grid)
        elif grid is not None:
            count_grids(self.kind, (grid[1], grid[2]), num_features)
            self._check_sides(grid[1], grid[2])
        elif self.order == "rows":
            raise ConfigError(f"merge projector: {num_features} features in rows need a grid, but nothing says it")
        if num_features % self.factor**2:
            raise ConfigError(
                f"merge projector: {num_features} features are no whole number of {self.factor} x {self.factor} squares"
            )
        return num_features // self.factor**2


def squares_of(values: jax.Array, factor: int) -> jax.Array:
    """Grids [B, h, w, C] -> [B, h / factor * w / factor, factor * factor * C], square by square in rows."""
    batch, height, width, channels = values.shape
    x = values.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, factor * factor * channels)


def square_indices(grid: jax.Array, length: int, factor: int) -> jax.Array:
    """Where the features of each square stand in rows that hold items of several shapes one after the other.

    Args:
        grid: int [B, I, 3], (time, height, width) of each item; zeros for none.
        length: N, features of a row, padding included.
        factor: side of a square.

    Returns:
        int [B, N // factor^2, factor^2]; squares behind the last one point anywhere inside the row.
    """
    frames, height, width = (jnp.asarray(grid)[..., axis] for axis in range(3))
    sizes = frames * height * width
    ends = jnp.cumsum(sizes, axis=1) // factor**2
    square = jnp.arange(length // factor**2)
    item = jnp.sum(square >= ends[..., None], axis=1)
    item = jnp.minimum(item, grid.shape[1] - 1)
    of = lambda field: jnp.take_along_axis(field, item, axis=1)
    height, width, start = of(height), of(width), of(jnp.cumsum(sizes, axis=1) - sizes)
    across = jnp.maximum(width // factor, 1)
    down = jnp.maximum(height // factor, 1)
    square = square - start // factor**2
    frame, row, column = square // (down * across), square // across % down, square % across
    first = start + frame * height * width + row * factor * width + column * factor
    inside = jnp.arange(factor)[:, None, None, None] * width + jnp.arange(factor)[:, None, None]
    indices = jnp.moveaxis((first + inside).reshape(factor**2, *first.shape), 0, -1)
    return jnp.clip(indices, 0, length - 1)


def _maps(config, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One linear map `out`, or `fc1` and `fc2` with an activation between; inside a compact method."""
    c = config
    if not c.hidden:
        return Linear((c.width,), ("feature", "embed"), use_bias=c.bias, dtype=dtype, name="out")(x)
    x = Linear((c.hidden,), ("feature", "mlp"), use_bias=c.bias, dtype=dtype, name="fc1")(x)
    fc2 = Linear((c.width,), ("mlp", "embed"), use_bias=c.bias, dtype=dtype, name="fc2")
    return fc2(ACTIVATIONS[c.activation](x))


class MergeProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, N / factor^2, D].

    Parameters: norm; join/kernel; out/{kernel, bias}, or fc1 and fc2.
    """

    config: MergeConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none.

        Raises:
            ValueError: features that are no whole number of grids or squares, or no grid where one is needed.
        """
        c = self.config
        x = media.values
        if c.norm_at == "before":
            x = NormConfig(c.norm, c.norm_eps).module(self.dtype, "norm")(x)
        x, segments = self._join(x, media)
        if c.norm_at == "after":
            x = NormConfig(c.norm, c.norm_eps).module(self.dtype, "norm")(x)
        if c.joined:
            x = Linear((c.joined,), ("feature", "mlp"), dtype=self.dtype, name="join")(x)
        return media.replace(values=_maps(c, x, self.dtype), segment_ids=segments, stage="projected")

    def _join(self, x: jax.Array, media: Media) -> tuple[jax.Array, jax.Array | None]:
        """[B, N, C] -> [B, N / factor^2, factor^2 * C], and whose they are."""
        c = self.config
        batch, length, channels = x.shape
        area = c.factor**2
        if self.is_initializing():
            return jnp.zeros((batch, 1, area * channels), self.dtype), None
        segments = None if media.segment_ids is None else jnp.asarray(media.segment_ids)
        if c.order == "rows" and c.grid is not None:
            squares = squares_of(split_grids(x, c.grid), c.factor).reshape(batch, length // area, -1)
            if segments is not None:
                # A square lies within one grid; it is padding where all of it is.
                segments = squares_of(split_grids(segments[..., None], c.grid), c.factor)
                segments = segments.reshape(batch, -1, area).max(axis=-1)
            return squares, segments
        if length % area:
            raise ValueError(f"{length} features are no whole number of {c.factor} x {c.factor} squares")
        if c.order == "rows":
            if media.grid is None:
                raise ValueError(f"{length} features in rows need a grid: give the projector's config or Media one")
            at = square_indices(media.grid, length, c.factor).reshape(batch, length)
            x = jnp.take_along_axis(x, at[..., None], axis=1)
        x = x.reshape(batch, length // area, area * channels)
        # Items stand one after the other, each a whole number of squares.
        return x, None if segments is None else segments[:, ::area]


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """A map, and grids pooled to another size.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        grid: height and width of a grid of features.
        out_grid: height and width of a grid of tokens.
        method: "average" or "bilinear", see `mmjax.nn.resize`.
        pool_first: whether features are pooled (LLaVA-NeXT-Video) or tokens (LLaVA-OneVision).
        norm: "layer" or "rms", of what goes into the map (Gemma 3), or "none".
        norm_eps, norm_offset: see `NormConfig`.
        hidden, activation, bias: see `MergeConfig`.
    """

    in_width: int
    width: int
    grid: Grid
    out_grid: Grid
    method: str = "average"
    pool_first: bool = False
    norm: str = "none"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    hidden: int = 0
    activation: str = "gelu"
    bias: bool = True

    kind: ClassVar[str] = "pool"

    def __post_init__(self):
        check_choice("pool projector method", self.method, ("average", "bilinear"))
        check_choice("pool projector norm", self.norm, ("none", *NORMS))
        check_activation("pool projector activation", self.activation)
        check_grid("pool projector: grid", self.grid)
        check_grid("pool projector: out_grid", self.out_grid)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: those of `out_grid`, once for each of its grids.

        Raises:
            ConfigError: its features are no whole number of grids, or its grid is another.
        """
        return count_grids(self.kind, self.grid, num_features, grid) * self.out_grid[0] * self.out_grid[1]


class PoolProjector(nn.Module):
    """Features [B, K * h * w, in_width] -> tokens [B, K * M, D]. Parameters norm; out, or fc1 and fc2."""

    config: PoolConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        x = split_grids(media.values, c.grid)
        x = resize(x, c.out_grid, c.method) if c.pool_first else x
        if c.norm != "none":
            x = NormConfig(c.norm, c.norm_eps, c.norm_offset).module(self.dtype, "norm")(x)
        x = _maps(c, x, self.dtype)
        x = x if c.pool_first else resize(x, c.out_grid, c.method)
        return join_grids(media, x.reshape(x.shape[0], -1, c.width), c.grid)
