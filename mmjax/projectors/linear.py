"""One linear map from the encoder's width to the LLM's (Liu et al., 2023, "Visual Instruction Tuning")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class LinearProjectorConfig:
    """Widths of the map: `in_width` channels of a feature, `width` D of the LLM."""

    in_width: int
    width: int
    bias: bool = True

    kind: ClassVar[str] = "linear"

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item with `num_features` features: as many."""
        return num_features


class LinearProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, N, D]. Parameters out/{kernel, bias}."""

    config: LinearProjectorConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        out = Linear(
            (self.config.width,),
            ("feature", "embed"),
            use_bias=self.config.bias,
            dtype=self.dtype,
            name="out",
        )
        return media.replace(values=out(media.values), stage="projected")
