"""A text tower whose tokens see all others: RoBERTa's, as CLAP has it, and the encoders of T5 and UMT5, by options.

Liu et al., 2019 (RoBERTa); Raffel et al., 2020 (T5); Chung et al., 2023 (UMT5).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.encoders.text import TokenEmbedding
from mmjax.nn.block import BlockConfig
from mmjax.nn.cross_block import CrossBlock
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import NormConfig
from mmjax.nn.relative import RelativeBias
from mmjax.nn.stack import init_stack, run_stack, side_by_side

POSITIONS = ("learned", "relative", "relative_each")


@dataclasses.dataclass(frozen=True)
class BidirectionalTextConfig:
    """Sizes and options of a text tower; the defaults are T5's.

    Attributes:
        vocab_size, width, num_layers, num_heads, head_dim, mlp_width: V, D, L, H, C, F.
        activation, gated: of the MLPs.
        norm, norm_eps: "rms" or "layer", and its epsilon.
        post_norm: see `CrossBlock`; without it the tower ends in a norm of its own.
        use_bias: whether the blocks' maps have biases.
        attention_scale: factor of q k; None is 1 / sqrt(C).
        position: "relative", one table of distances for all layers; "relative_each", one a layer (UMT5); "learned", a
            table of `table_rows` that is added to the tokens', and the norm of the sum (RoBERTa).
        relative_buckets, relative_max_distance: see `RelativeBias`.
        table_rows: rows of learned positions, those up to `pad_id` included, which no token of a text has.
        pad_id: the token that takes no learned position.
        token_types: rows of a table of which the first is added to every token where positions are learned.
        pooled: whether tanh of a map of the first token stands for the text.
        projection_dim, projection_activation: of two maps behind that; none where None.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_width: int
    activation: str = "gelu_tanh"
    gated: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-6
    post_norm: bool = False
    use_bias: bool = False
    attention_scale: float | None = 1.0
    position: str = "relative"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    table_rows: int = 514
    pad_id: int = 0
    token_types: int = 1
    pooled: bool = False
    projection_dim: int | None = None
    projection_activation: str = "relu"

    kind: ClassVar[str] = "bidirectional_text"

    def __post_init__(self):
        check_choice("bidirectional_text.position", self.position, POSITIONS)
        check_activation("bidirectional_text.activation", self.activation)
        check_activation("bidirectional_text.projection_activation", self.projection_activation)
        if self.projection_dim and not self.pooled:
            raise ConfigError("bidirectional_text.projection_dim needs pooled: there is nothing else to project")
        # Both directions halve the buckets, and half of those are for single distances.
        if self.position != "learned" and not 4 <= self.relative_buckets <= self.relative_max_distance:
            raise ConfigError(
                f"bidirectional_text.relative_buckets must be at least 4 and at most relative_max_distance "
                f"{self.relative_max_distance}, got {self.relative_buckets}"
            )
        if self.position == "learned" and not 0 <= self.pad_id < self.table_rows - 1:
            raise ConfigError(f"bidirectional_text.pad_id {self.pad_id} leaves no position of {self.table_rows} rows")

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest text; None where nothing bounds it."""
        return self.table_rows - self.pad_id - 1 if self.position == "learned" else None

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            gated=self.gated,
            qkv_bias=self.use_bias,
            out_bias=self.use_bias,
            mlp_bias=self.use_bias,
            attention_scale=self.attention_scale,
        )


class LearnedPositions(nn.Module):
    """Tokens with what their place is worth, normalised. Parameters embedding [rows, D], types [n, D], norm.

    Attributes:
        config: of the tower.
        dtype: compute dtype.
    """

    config: BidirectionalTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """x [B, T, D] of tokens int [B, T] -> [B, T, D]; what is no padding is counted from pad_id + 1 on."""
        c = self.config

        def rows(name, count):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
            return self.param(name, init, (count, c.width))

        own = (tokens != c.pad_id).astype(jnp.int32)
        places = jnp.cumsum(own, axis=1) * own + c.pad_id
        x = x + rows("types", c.token_types)[0] + rows("embedding", c.table_rows)[places]
        return NormConfig(c.norm, c.norm_eps).module(self.dtype, "norm")(x)


class BidirectionalText(nn.Module):
    """Tokens to hidden states, and to one vector a text where the config says so.

    Parameters embed; positions, or relative ([L, ...] where each layer has its own); blocks [L, ...]; norm where
    blocks are pre-norm; pool, projection_1, projection_2 where there are such.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: BidirectionalTextConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Runs the tower.

        Args:
            tokens: int [B, T].
            mask: bool [B, T], False for padding, which no token sees; None sees all.

        Returns:
            "last_hidden_state" [B, T, D]; "pooled" [B, D] and "embeds" [B, projection_dim] where there are such.

        Raises:
            ValueError: the text is longer than `max_positions`.
        """
        c, length = self.config, tokens.shape[1]
        if c.max_positions is not None and length > c.max_positions:
            raise ValueError(f"text of {length} tokens, but the encoder has {c.max_positions} positions")
        seen = None if mask is None else jnp.asarray(mask, bool)[:, None, :]
        x = TokenEmbedding(c.vocab_size, c.width, name="embed")(tokens)
        if c.position == "learned":
            x = LearnedPositions(c, self.dtype, name="positions")(x, tokens)
        x = constrain(x.astype(self.dtype), "batch", "length", "act_embed")
        block = CrossBlock(c.block, c.post_norm, False, self.dtype, parent=None)
        stacks = {"block": self._stack("blocks", block, jnp.zeros((1, 1, c.width), self.dtype))}
        at = jnp.arange(length)
        apart, shared = (at[:, None] - at[None])[None], None
        relative = c.num_heads, c.relative_buckets, c.relative_max_distance, True
        each = RelativeBias(*relative, parent=None)
        if c.position == "relative":
            shared = RelativeBias(*relative, name="relative")(apart)
        elif c.position == "relative_each":
            stacks["relative"] = self._stack("relative", each, jnp.zeros((1, 1, 1), jnp.int32))

        def apply(layer, x, cache):
            bias = each.apply({"params": layer["relative"]}, apart) if "relative" in layer else shared
            return block.apply({"params": layer["block"]}, x, seen, bias, cache)

        x, _ = run_stack(apply, side_by_side(**stacks), x, remat=self.remat)
        if not c.post_norm:
            x = c.block.norms.module(self.dtype, "norm")(x)
        out = {"last_hidden_state": x}
        if c.pooled:
            out["pooled"] = pooled = jnp.tanh(self._linear("pool", c.width)(x[:, 0]))
        if c.projection_dim:
            h = ACTIVATIONS[c.projection_activation](self._linear("projection_1", c.projection_dim)(pooled))
            out["embeds"] = self._linear("projection_2", c.projection_dim)(h)
        return out

    def _stack(self, name: str, module: nn.Module, dummy: jax.Array):
        if self.is_initializing():
            return nn.unbox(self.param(name, init_stack(module, self.config.num_layers, dummy)))
        return self.get_variable("params", name)

    def _linear(self, name: str, features: int) -> Linear:
        return Linear((features,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name=name)
