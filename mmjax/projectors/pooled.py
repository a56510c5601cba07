"""From pooled image features to a few tokens: one or more global ones and one for each part of the image.

A small frozen encoder hands over a global feature and some local ones. The global feature becomes several
tokens through linear maps of their own, which may start from a ridge regression each (`mmjax.train.ridge`),
the local ones share a map; a shared MLP that starts at zero adds what a linear map cannot.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class PooledProjectorConfig:
    """Sizes of the map.

    Attributes:
        in_width: channels of a feature.
        width: D of the LLM.
        global_heads: tokens made of an item's first feature.
        num_local: features of an item behind the first; each becomes one token.
        hidden: width of the shared MLP.
        dropout: share of input channels dropped in training, the same ones in all features of a row.
        scale: initial value of the leaf `scale`, which every token is multiplied by. The standard deviation
            of the LLM's own embeddings makes the tokens as large as words while the maps stay near one.
    """

    in_width: int
    width: int
    global_heads: int = 2
    num_local: int = 4
    hidden: int = 1024
    dropout: float = 0.1
    scale: float = 1.0

    kind: ClassVar[str] = "pooled"

    def __post_init__(self):
        if self.global_heads < 1 or self.num_local < 0:
            raise ConfigError(
                f"pooled projector: global_heads must be at least 1 and num_local at least 0, "
                f"got {self.global_heads} and {self.num_local}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"pooled projector: dropout must be in [0, 1), got {self.dropout}")

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item.

        Raises:
            ConfigError: the encoder gives another number of features than 1 + num_local.
        """
        if num_features != 1 + self.num_local:
            raise ConfigError(
                f"pooled projector: it takes 1 + {self.num_local} features of an item, "
                f"but the encoder gives {num_features}"
            )
        return self.global_heads + self.num_local


class PooledProjector(nn.Module):
    """Features [B, I * (1 + num_local), in_width] -> tokens [B, I * (global_heads + num_local), D].

    Parameters: constants mean, std [in_width] and scale [], which stage rules freeze by their paths;
    global_{i}/{kernel, bias}, local/{kernel, bias}, fc1/kernel, fc2/kernel (zero at first), position
    [tokens, D].
    """

    config: PooledProjectorConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """With `train`, input channels are dropped (needs the rng "dropout")."""
        c = self.config
        per_item = 1 + c.num_local
        batch, length, _ = media.values.shape
        if length % per_item:
            raise ValueError(f"{length} features are no multiple of the {per_item} that an item has")
        items = length // per_item

        def leaf(name, init, shape, axes):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape)

        mean = leaf("mean", nn.initializers.zeros, (c.in_width,), ("feature",))
        std = leaf("std", nn.initializers.ones, (c.in_width,), ("feature",))
        scale = leaf("scale", nn.initializers.constant(c.scale), (), ())
        x = (media.values.astype(jnp.float32) - mean) / std
        x = nn.Dropout(c.dropout, broadcast_dims=(1,), deterministic=not train)(x)
        x = x.reshape(batch, items, per_item, c.in_width).astype(self.dtype)

        first, local = x[:, :, :1], x[:, :, 1:]
        rest = self._residual(x)
        parts = [self._map(f"global_{head}")(first) + rest[:, :, :1] for head in range(c.global_heads)]
        if c.num_local:
            parts.append(self._map("local")(local) + rest[:, :, 1:])
        y = jnp.concatenate(parts, axis=2)
        position = leaf("position", nn.initializers.zeros, (y.shape[2], c.width), (None, "embed"))
        y = (y + position.astype(self.dtype)) * scale.astype(self.dtype)
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.repeat(jnp.asarray(segments)[:, ::per_item], y.shape[2], axis=1)
        values = y.reshape(batch, items * y.shape[2], c.width)
        return media.replace(values=values, segment_ids=segments, stage="projected")

    def _map(self, name: str) -> Linear:
        axes = ("feature", "embed")
        return Linear((self.config.width,), axes, use_bias=True, dtype=self.dtype, name=name)

    def _residual(self, x: jax.Array) -> jax.Array:
        """The shared MLP, without biases; fc2 is zero at first."""
        c = self.config
        h = Linear((c.hidden,), ("feature", "mlp"), dtype=self.dtype, name="fc1")(x)
        return Zero((c.width,), self.dtype, name="fc2")(jax.nn.gelu(h))


class Zero(nn.Module):
    """A bias-free linear map whose kernel [in, *features] starts at zero."""

    features: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]."""
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("mlp", "embed"))
        kernel = self.param("kernel", init, (x.shape[-1], *self.features))
        return x.astype(self.dtype) @ kernel.astype(self.dtype)
