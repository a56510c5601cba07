"""A region of any shape becomes one token: points in it, merged with their neighbours until few are left.

You et al., 2023, "Ferret: Refer and ground anything anywhere at any granularity". Points and boxes are masks too: a
disc around the point, the inside of the box.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.nn.linear import Linear
from mmjax.nn.region_points import POOLS, PointMerge, features_at, points_inside
from mmjax.projectors.regions.levels import check_levels, check_widths


@dataclasses.dataclass(frozen=True)
class SampledTokenConfig:
    """Sizes and options.

    Attributes:
        in_widths: channels of the one map.
        width: D of the LLM.
        num_points: points of a region at first.
        kept: how many are left after each merging.
        neighbours: how many each of these takes in.
        pool: "mean" or "max" over neighbours.
        norm_eps: of the norms.
    """

    in_widths: tuple[int, ...]
    width: int
    num_points: int = 512
    kept: tuple[int, ...] = (128, 32)
    neighbours: tuple[int, ...] = (24, 24)
    pool: str = "mean"
    norm_eps: float = 1e-5

    kind: ClassVar[str] = "sampled_token"
    takes: ClassVar[str] = "masks"
    tokens: ClassVar[int] = 1

    def __post_init__(self):
        check_widths(self.kind, self.in_widths)
        check_choice("sampled_token.pool", self.pool, POOLS)
        if len(self.in_widths) != 1:
            raise ConfigError(f"sampled_token reads one map, in_widths names {len(self.in_widths)}")
        if len(self.kept) != len(self.neighbours) or not self.kept:
            raise ConfigError(
                f"sampled_token: kept {self.kept} and neighbours {self.neighbours} must be as many and at least one"
            )
        before = self.num_points
        for kept, neighbours in zip(self.kept, self.neighbours, strict=True):
            if not 1 <= kept <= before or not 1 <= neighbours <= before:
                raise ConfigError(
                    f"sampled_token: of {before} points, {kept} cannot be kept with {neighbours} neighbours each"
                )
            before = kept


class SampledToken(nn.Module):
    """A map and masks to tokens. Parameters merge_{i}, flat, out."""

    config: SampledTokenConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], regions: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """The map [B, h, w, C] and masks [B, R, h', w'] -> [B, R, 1, D].

        `rng` draws the points, in training; without it they lie at even distances.

        Raises:
            ValueError: shapes that do not fit.
        """
        c = self.config
        check_levels(c.kind, c.in_widths, levels, regions)
        batch, number = regions.shape[:2]
        points = points_inside(regions.reshape(-1, *regions.shape[2:]), c.num_points, rng)
        # All regions of an image read one map.
        features = features_at(levels[0].astype(self.dtype), points.reshape(batch, -1, 2))
        features = features.reshape(batch * number, c.num_points, -1)
        for step, (kept, neighbours) in enumerate(zip(c.kept, c.neighbours, strict=True)):
            merge = PointMerge(kept, neighbours, c.pool, c.norm_eps, self.dtype, name=f"merge_{step}")
            points, features = merge(points, features)

        def linear(name, width):
            return Linear((width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name=name)

        x = linear("flat", c.in_widths[0])(features.reshape(batch, number, 1, -1))
        return linear("out", c.width)(x)
