"""One layer of cross-attention from learned queries, with positions on a plane (Bai et al., 2023, "Qwen-VL")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, attend
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.resize import resize_matrix
from mmjax.nn.sincos import sincos_2d
from mmjax.projectors.grids import Grid, check_grid, count_grids, join_grids, split_grids


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a resampler.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM, and of the attention.
        grid: height and width of the grid of features.
        query_grid: height and width of the grid that the queries stand for; Q is their product.
        num_heads: H.
        norm_eps: of all norms.
        post: whether a norm and a bias-free square map stand behind the attention, as in Qwen-VL's tower.
    """

    in_width: int
    width: int
    grid: Grid
    query_grid: Grid = (16, 16)
    num_heads: int = 32
    norm_eps: float = 1e-6
    post: bool = False

    kind: ClassVar[str] = "resampler"

    def __post_init__(self):
        check_grid("resampler projector: grid", self.grid)
        check_grid("resampler projector: query_grid", self.query_grid)
        if self.width % self.num_heads:
            raise ConfigError(
                f"resampler projector: width {self.width} is not a multiple of num_heads {self.num_heads}"
            )
        if self.width % 4:
            raise ConfigError(f"resampler projector: width {self.width} is not a multiple of 4")

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: the queries, once for each of its grids.

        Raises:
            ConfigError: its features are no whole number of grids, or its grid is another.
        """
        number = count_grids(self.kind, self.grid, num_features, grid)
        return number * self.query_grid[0] * self.query_grid[1]


class ResamplerProjector(nn.Module):
    """Features [B, K * h * w, in_width] -> tokens [B, K * Q, D].

    Parameters: queries [Q, D]; input/kernel where in_width is not D; query_norm, context_norm; attn, see
    `Attention`; with `post`, post_norm and out/kernel. Positions are computed, not stored: sines of the
    queries' grid, and for the features the same table interpolated to their grid. Features in segment 0 are
    not seen.
    """

    config: ResamplerConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        size = c.grid[0] * c.grid[1]
        x = split_grids(media.values, c.grid).reshape(-1, size, c.in_width)
        if c.in_width != c.width:
            x = Linear((c.width,), ("feature", "embed"), dtype=self.dtype, name="input")(x)
        x = LayerNorm(c.norm_eps, self.dtype, name="context_norm")(x)
        table = sincos_2d(c.width, *c.query_grid)
        spread = [resize_matrix(*sides, "bicubic") for sides in zip(c.query_grid, c.grid, strict=True)]
        # On equal grids the matrices are identities.
        positions = jnp.einsum("Hh,hwc,Ww->HWc", spread[0], table, spread[1], precision="highest")
        positions = positions.reshape(size, c.width).astype(self.dtype)

        init = nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), (None, "embed"))
        queries = self.param("queries", init, (c.query_grid[0] * c.query_grid[1], c.width))
        queries = LayerNorm(c.norm_eps, self.dtype, name="query_norm")(queries)
        queries = queries + jnp.asarray(table, self.dtype).reshape(queries.shape)
        queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape))
        mask = None
        if media.segment_ids is not None:
            mask = (jnp.asarray(media.segment_ids) > 0).reshape(-1, 1, size)
        heads = c.num_heads
        attn = Attention(c.width, heads, heads, c.width // heads, True, True, dtype=self.dtype, name="attn")
        # Positions are for looking up, not for carrying along: keys have them, values do not.
        q = constrain(attn.q(queries), "batch", "length", "act_heads", None)
        k, v = (
            constrain(leaf.swapaxes(1, 2), "batch", "act_kv_heads", None, None)
            for leaf in (attn.k(x + positions), attn.v(x))
        )
        y = attn.o(attend(q, k, v, mask))
        if c.post:
            y = LayerNorm(c.norm_eps, self.dtype, name="post_norm")(y)
            y = Linear((c.width,), ("feature", "embed"), dtype=self.dtype, name="out")(y)
        return join_grids(media, y, c.grid)
