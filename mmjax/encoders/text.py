"""The text tower of a dual encoder: CLIP's causal transformer and SigLIP's bidirectional one by options.

Radford et al., 2021 (CLIP); Zhai et al., 2023 (SigLIP).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes and options of a text tower.

    Attributes:
        vocab_size, width, num_layers, num_heads, mlp_width: V, D, L, H, F.
        max_positions: longest text.
        activation, norm_eps: of the blocks.
        causal: whether a token sees earlier ones only (CLIP) or all of them (SigLIP).
        pool: "eos", the end-of-text token, or "last", the last position whatever stands there (SigLIP).
        eos_token: the id that `pool` "eos" looks for (its first occurrence); None takes the position of the
            highest id in the row, which CLIP's original vocabulary makes the same.
        projection_dim, projection_bias: of the map behind the pooled vector; no map where None.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pool: str = "eos"
    eos_token: int | None = None
    projection_dim: int | None = None
    projection_bias: bool = False

    kind: ClassVar[str] = "text"

    def __post_init__(self):
        check_activation("text.activation", self.activation)
        check_choice("text.pool", self.pool, ("eos", "last"))
        if self.width % self.num_heads:
            raise ConfigError(f"text.width {self.width} is not a multiple of num_heads {self.num_heads}")

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )


class TokenEmbedding(nn.Module):
    """Rows of a table [V, D]."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D]."""
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        return self.param("embedding", init, (self.vocab_size, self.width))[tokens]


class TextEncoder(nn.Module):
    """Tokens to hidden states and one vector a text.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
        penultimate: whether what the last block reads is given too.
    """

    config: TextEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    penultimate: bool = False

    def setup(self):
        c = self.config
        positions = nn.with_logical_partitioning(nn.initializers.normal(0.01), (None, "embed"))
        self.embed = TokenEmbedding(c.vocab_size, c.width)
        self.position_embedding = self.param("position_embedding", positions, (c.max_positions, c.width))
        self.final_norm = LayerNorm(c.norm_eps, self.dtype)
        if c.projection_dim:
            self.projection = Linear(
                (c.projection_dim,), ("embed", "feature"), use_bias=c.projection_bias, dtype=self.dtype
            )
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Runs the tower.

        Args:
            tokens: int [B, T].
            mask: bool [B, T], False for padding, which no token sees; None sees all.

        Returns:
            "last_hidden_state" [B, T, D]; "pooled" [B, D]; "embeds" [B, projection_dim] where there is a map;
            "penultimate" [B, T, D], without the final norm, where it is asked for.

        Raises:
            ValueError: the text is longer than `max_positions`.
        """
        c = self.config
        length = tokens.shape[1]
        if length > c.max_positions:
            raise ValueError(f"text of {length} tokens, but the encoder has {c.max_positions} positions")
        seen = jnp.ones((1, length, length), bool)
        if c.causal:
            seen = jnp.tril(seen)
        if mask is not None:
            seen &= jnp.asarray(mask, bool)[:, None, :]
        x = (self.embed(tokens) + self.position_embedding[:length]).astype(self.dtype)
        x = constrain(x, "batch", None, "act_embed")

        def apply(params, x, cache):
            return self.block.apply({"params": params}, x, seen, cache=cache)

        out, last = {}, c.num_layers - 1
        if self.penultimate:
            x, _ = run_stack(apply, self.blocks, x, remat=self.remat, stop=last)
            out["penultimate"] = x
        x, _ = run_stack(apply, self.blocks, x, remat=self.remat, start=last if self.penultimate else 0)
        x = self.final_norm(x)
        if c.pool == "last":
            pooled = x[:, -1]
        else:
            score = tokens if c.eos_token is None else tokens == c.eos_token
            pooled = x[jnp.arange(x.shape[0]), jnp.argmax(score, axis=-1)]
        out |= {"last_hidden_state": x, "pooled": pooled}
        if c.projection_dim:
            out["embeds"] = self.projection(pooled)
        return out
