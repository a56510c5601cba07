"""A mask becomes two tokens: what is under it in several maps, and its shape.

Yuan et al., 2024, "Osprey: Pixel understanding with visual instruction tuning" (mask-aware visual extractor).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.nn.linear import Linear
from mmjax.nn.regions import mask_pool
from mmjax.nn.resize import resize
from mmjax.projectors.regions.levels import check_levels, check_widths


@dataclasses.dataclass(frozen=True)
class MaskTokensConfig:
    """Sizes.

    Attributes:
        in_widths: channels of each map (the stages of a ConvNeXt).
        width: D of the LLM.
        hidden: width that the maps share, and of the layers that read the shape.
        mask_size: pixels of a side to which masks are resized for their shape.
    """

    in_widths: tuple[int, ...]
    width: int
    hidden: int = 1024
    mask_size: int = 112

    kind: ClassVar[str] = "mask_tokens"
    takes: ClassVar[str] = "masks"
    tokens: ClassVar[int] = 2

    def __post_init__(self):
        check_widths(self.kind, self.in_widths)
        if self.mask_size < 1:
            raise ConfigError(f"mask_tokens.mask_size must be at least 1, got {self.mask_size}")


class MaskTokens(nn.Module):
    """Maps and masks to tokens. Parameters level_{level}, features; shape_1, shape_2, shape_3."""

    config: MaskTokensConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array], regions: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] and masks [B, R, h', w'] -> [B, R, 2, D], the features' token first.

        Raises:
            ValueError: shapes that do not fit.
        """
        c = self.config
        check_levels(c.kind, c.in_widths, levels, regions)

        def linear(name, width, axes=("feature", "embed")):
            return Linear((width,), axes, use_bias=True, dtype=self.dtype, name=name)

        pooled = [mask_pool(level.astype(self.dtype), regions) for level in levels]
        features = sum(linear(f"level_{number}", c.hidden)(x) for number, x in enumerate(pooled))
        shape = resize(regions.astype(jnp.float32)[..., None], (c.mask_size, c.mask_size), "bilinear")
        shape = shape.reshape(*regions.shape[:2], -1)
        for step in (1, 2):
            shape = jax.nn.relu(linear(f"shape_{step}", c.hidden)(shape))
        tokens = linear("features", c.width)(features), linear("shape_3", c.width)(shape)
        return jnp.stack(tokens, axis=2)
