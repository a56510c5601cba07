"""Retrieval in the place of making: signals and images as vectors of one space (Koh et al., 2023, "FROMAGe", "GILL").

    image features [B, C] --map--> [B, width] <--> [B, width] <--(map)-- condition

Both are normalised, so that their product is a cosine; a learned temperature makes logits of it, as CLIP does.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Widths.

    Attributes:
        in_width: C, channels of an image's features.
        width: of the shared space, and of the condition.
        condition_map: whether a condition goes through a map too. Without one it lies in the shared space as it comes,
            for output projectors that are a linear map themselves.
    """

    in_width: int
    width: int
    condition_map: bool = True

    kind: ClassVar[str] = "retrieval"

    def __post_init__(self):
        for name in ("in_width", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"retrieval.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def condition_width(self) -> int:
        """Channels of a condition."""
        return self.width

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the features of one image."""
        return (self.in_width,)

    def check_encoder(self, encoder: Any) -> None:
        """Raises ConfigError unless the encoder of images, if there is one, gives vectors of `in_width`."""
        if encoder is None:
            return
        if not hasattr(encoder, "item_shape"):
            raise ConfigError(f"retrieval finds images; its encoder is a {encoder.kind}")
        names = ("projection_dim", "embed_width", "width", "feature_width")
        given = next(filter(None, (getattr(encoder, name, None) for name in names)))
        if given != self.in_width:
            raise ConfigError(f"the generator's encoder gives vectors of {given} channels, in_width is {self.in_width}")


class Retrieval(nn.Module):
    """Parameters images {kernel, bias}, condition {kernel, bias} where it has a map, logit_scale [].

    Attributes:
        config: widths.
        dtype: compute dtype of the maps; what they give is normalised in float32.
        remat: does not matter.
    """

    config: RetrievalConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.images = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype)
        if c.condition_map:
            self.condition = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype)
        # CLIP's temperature of 0.07.
        start = nn.with_logical_partitioning(nn.initializers.constant(math.log(1 / 0.07)), ())
        self.logit_scale = self.param("logit_scale", start, ())

    def __call__(self, condition: Condition) -> jax.Array:
        """What is looked for, float32 [B, width] of length 1: the condition's pooled vector, else its tokens' mean."""
        x = condition.sequence.mean(axis=1) if condition.pooled is None else condition.pooled
        return _normalised(self.condition(x) if self.config.condition_map else x)

    def embed(self, features: jax.Array) -> jax.Array:
        """Features [B, C] of images -> float32 [B, width] of length 1."""
        return _normalised(self.images(features))

    def logits(self, asked: jax.Array, found: jax.Array) -> jax.Array:
        """float32 [A, B] of asked [A, width] and found [B, width]: their cosines over the temperature."""
        return asked @ found.T * jnp.exp(self.logit_scale.astype(jnp.float32))

    def create(self, features: jax.Array) -> None:
        """Touches every parameter once: what `init` runs. features [B, C]."""
        found = self.embed(features)
        self.logits(self(Condition(None, pooled=found)), found)


def _normalised(x: jax.Array) -> jax.Array:
    """[B, width] over its length; zeros stay zeros, and have a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def contrastive_loss(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean of both directions of InfoNCE (van den Oord et al., 2018; Radford et al., 2021).

    Args:
        logits: float32 [N, N], signal by image; what belongs together is on the diagonal.
        weights: [N]; 0 for padding, which is neither asked for nor among what could be found.

    Returns:
        float32 scalar, 0 where all is padding.
    """
    weights = jnp.asarray(weights, jnp.float32)
    real = weights > 0
    # Padding also finds itself, so that no row is without anything to be found.
    open_to = real[:, None] & real | jnp.eye(len(weights), dtype=bool)
    logits = jnp.where(open_to, logits, -jnp.inf)
    own = jnp.where(real, jnp.diagonal(logits), 0.0)
    both = [jax.nn.logsumexp(side, axis=1) for side in (logits, logits.T)]
    loss = jnp.where(real, sum(both) / 2 - own, 0.0)
    return jnp.sum(weights * loss) / jnp.maximum(jnp.sum(weights), 1e-8)
