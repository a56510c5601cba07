"""Continuous integrate-and-fire: as many tokens as there is something to say, each from frames in a row.

Dong & Xu, 2020 ("CIF: Continuous integrate-and-fire for end-to-end speech recognition"); with a transformer and a map
behind it, as the speech interface of Chen et al., 2023 ("X-LLM").
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack
from mmjax.projectors.items import check_features, join_items, split_items

# In `extra_features`: how many tokens each item should become, and how many its weights say, float [B, I] each.
TARGET, QUANTITY = "target_tokens", "quantity"


@dataclasses.dataclass(frozen=True)
class CIFConfig:
    """Sizes and options of the adapter.

    Attributes:
        in_width: channels of a feature, of a token before the last map, and of the blocks.
        width: D of the LLM.
        max_tokens: tokens of an item, padding included; what it would fire beyond is dropped.
        hidden, window: channels and frames (odd) of the convolution that weights are read from.
        tail: share of a token's weight that is enough for a last token.
        num_layers, num_heads, mlp_width, activation, norm_eps: of the blocks over the tokens.
        num_features: features of an item where all items have as many, see `split_items`.
    """

    in_width: int
    width: int
    max_tokens: int
    hidden: int = 256
    window: int = 3
    tail: float = 0.5
    num_layers: int = 2
    num_heads: int = 8
    mlp_width: int = 2048
    activation: str = "gelu"
    norm_eps: float = 1e-5
    num_features: int | None = None

    kind: ClassVar[str] = "cif"

    def __post_init__(self):
        check_activation("cif projector activation", self.activation)
        for name in ("max_tokens", "hidden", "num_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cif projector: {name} must be at least 1, got {getattr(self, name)}")
        if self.window < 1 or self.window % 2 == 0:
            raise ConfigError(f"cif projector: window must be odd, so that it has a middle, got {self.window}")
        if not 0 < self.tail < 1:
            raise ConfigError(f"cif projector: tail must be between 0 and 1, got {self.tail}")
        if self.in_width % self.num_heads:
            raise ConfigError(
                f"cif projector: in_width {self.in_width} is not a multiple of num_heads {self.num_heads}"
            )

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.in_width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.in_width // self.num_heads,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item, padding included, whatever its grid.

        Raises:
            ConfigError: the encoder gives another number of features than the config says.
        """
        check_features(self.kind, self.num_features, num_features)
        return self.max_tokens


def scale_to(weights: jax.Array, target: jax.Array) -> jax.Array:
    """Weights [B, N] so that they add up to `target` [B]; a row of zeros stays one."""
    total = jnp.sum(weights, axis=1)
    factor = jnp.asarray(target, jnp.float32) / jnp.where(total > 0, total, 1.0)
    return weights * factor[:, None]


def firing(weights: jax.Array, max_tokens: int, tail: float = 0.5) -> tuple[jax.Array, jax.Array]:
    """How much of every frame each token is made of.

    Weights are laid end to end; token m is what lies between m and m + 1, so that a frame across a border is shared
    out between the tokens of both sides. This is integrating frame by frame and firing at 1, all frames at once.
    What remains at the end is a token where it is `tail` or more, and then scaled up to a whole one; else it is
    dropped. So weights that are scaled to a whole number give that number, however their sum is rounded.

    Args:
        weights: float32 [B, N], not negative; 0 for padding. They may be above 1.
        max_tokens: M.
        tail: see above.

    Returns:
        float32 [B, M, N], rows that add up to 1, or to 0 where there is no token; int32 [B], tokens fired, at most M.
    """
    ends = jnp.cumsum(weights, axis=1)
    starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
    token = jnp.arange(max_tokens)
    first = token[:, None].astype(jnp.float32)
    shares = jax.nn.relu(jnp.minimum(ends[:, None], first + 1) - jnp.maximum(starts[:, None], first))
    total = ends[:, -1]
    whole = jnp.floor(total).astype(jnp.int32)
    count = whole + (total - whole >= tail)
    last = (token == whole[:, None]) & (token < count[:, None])
    held = jnp.sum(shares, axis=2)
    shares = shares / jnp.where(last, held, 1.0)[..., None]
    return jnp.where(token[:, None] < count[:, None, None], shares, 0.0), jnp.minimum(count, max_tokens)


def quantity_loss(quantity: jax.Array, target: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Mean absolute difference of how many tokens weights say and how many there should be, float32 [].

    Args:
        quantity: [B, I], `extra_features[QUANTITY]` of what the projector gives.
        target: [B, I].
        counted: bool [B, I], which items count; None: all. Without any the loss is 0.
    """
    gap = jnp.abs(quantity.astype(jnp.float32) - jnp.asarray(target, jnp.float32))
    counted = jnp.ones(gap.shape, bool) if counted is None else counted
    return jnp.sum(jnp.where(counted, gap, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


class CIFProjector(nn.Module):
    """Features [B, N, in_width] -> tokens [B, I * max_tokens, D]; what is not fired is padding of zeros.

    Parameters conv {kernel [window, in_width, hidden], bias}, weight {kernel [hidden, 1], bias}, position_embedding
    [max_tokens, in_width], blocks/... as in `Block`, norm, out {kernel, bias}.
    """

    config: CIFConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """With `train`, weights are scaled to `extra_features[TARGET]`, where that is given.

        `extra_features[QUANTITY]` of the result is what the weights add up to, before they are scaled.

        Raises:
            ValueError: see `split_items`.
        """
        c = self.config
        features, seen = split_items(media, c.num_features, self.is_initializing())
        seen = jnp.ones(features.shape[:2], bool) if seen is None else seen
        features = jnp.where(seen[..., None], features, 0).astype(self.dtype)
        weights = jnp.where(seen, self._weights(features), 0.0)
        quantity = jnp.sum(weights, axis=1)
        extra = dict(media.extra_features or {})
        target = extra.pop(TARGET, None)
        if train and target is not None:
            weights = scale_to(weights, jnp.reshape(target, -1))
        shares, count = firing(weights, c.max_tokens, c.tail)
        x = jnp.einsum("bmn,bnc->bmc", shares.astype(self.dtype), features)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        x = x + self.param("position_embedding", init, (c.max_tokens, c.in_width)).astype(self.dtype)
        fired = jnp.arange(c.max_tokens) < count[:, None]
        x = LayerNorm(c.norm_eps, self.dtype, name="norm")(self._blocks(x, fired[:, None]))
        x = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="out")(x)
        out = join_items(media, jnp.where(fired[..., None], x, 0), seen)
        batch = media.values.shape[0]
        extra[QUANTITY] = quantity.reshape(batch, -1)
        segments = jnp.where(fired.reshape(batch, -1), out.segment_ids, 0)
        return out.replace(segment_ids=segments, extra_features=extra)

    def _weights(self, features: jax.Array) -> jax.Array:
        """[B, N, in_width] -> float32 [B, N] between 0 and 1."""
        c, length = self.config, features.shape[1]
        padded = jnp.pad(features, ((0, 0), (c.window // 2, c.window // 2), (0, 0)))
        windows = jnp.stack([padded[:, first : first + length] for first in range(c.window)], axis=2)
        conv = Linear((c.hidden,), ("patch", "feature", "embed"), 2, use_bias=True, dtype=self.dtype, name="conv")
        # In float32 from here on: the sum of many weights decides where a token ends.
        weight = Linear((1,), ("embed", None), use_bias=True, dtype=jnp.float32, name="weight")
        return jax.nn.sigmoid(weight(jax.nn.relu(conv(windows)))[..., 0])

    def _blocks(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            blocks = self.param("blocks", init_stack(block, c.num_layers, x[:1, :1]))
        else:
            blocks = self.get_variable("params", "blocks")
        apply = lambda params, x, cache: (block.apply({"params": params}, x, mask=mask)[0], cache)
        return run_stack(apply, blocks, x)[0]
