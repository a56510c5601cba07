"""Two linear maps with an activation between, as in LLaVA-1.5 (Liu et al., 2023, "Improved Baselines")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm


@dataclasses.dataclass(frozen=True)
class MLPProjectorConfig:
    """Widths and options.

    Attributes:
        in_width, hidden, width: of the features, between the maps, D of the LLM.
        activation, bias: between the maps, of both maps.
        norm_eps: of a layer norm on the features (ViP-LLaVA); None: there is none.
    """

    in_width: int
    hidden: int
    width: int
    activation: str = "gelu"
    bias: bool = True
    norm_eps: float | None = None

    kind: ClassVar[str] = "mlp"

    def __post_init__(self):
        check_activation("mlp projector activation", self.activation)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item with `num_features` features: as many."""
        return num_features


class MLPProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, N, D]. Parameters norm; fc1 and fc2, each {kernel, bias}."""

    config: MLPProjectorConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        fc1 = Linear((c.hidden,), ("feature", "mlp"), use_bias=c.bias, dtype=self.dtype, name="fc1")
        fc2 = Linear((c.width,), ("mlp", "embed"), use_bias=c.bias, dtype=self.dtype, name="fc2")
        x = media.values
        if c.norm_eps is not None:
            x = LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
        return media.replace(values=fc2(ACTIVATIONS[c.activation](fc1(x))), stage="projected")
