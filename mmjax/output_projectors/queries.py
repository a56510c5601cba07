"""Learned queries that read a signal's states through an encoder-decoder: the "tiny transformer" of any-to-any models.

Koh et al., 2023 ("GILL", its GILLMapper); Wu et al., 2024 ("NExT-GPT"); Zheng et al., 2023 ("MiniGPT-5", pre-norm and
with an MLP before it). The transformer in the middle is torch's `nn.Transformer`.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Condition
from mmjax.nn.block import BlockConfig
from mmjax.nn.cross_block import CrossBlock
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.stack import init_stack, run_stack

POOLED = ("none", "mean")


@dataclasses.dataclass(frozen=True)
class QueriesOutputConfig:
    """Sizes and options.

    Attributes:
        in_width, width: D of the LLM and of the condition.
        num_queries: N, tokens of the condition.
        inner_width, num_heads, mlp_width: of the transformer.
        encoder_layers, decoder_layers: its depth on either side.
        hidden: channels between the two maps before the transformer; None: there is one map.
        activation: between those two.
        pre_norm: whether the blocks normalise what they read rather than what they give.
        out_map: whether a map follows the transformer; without one `inner_width` is `width`.
        pooled: the condition's pooled vector: "none", or the "mean" of its tokens.
        adds_embeddings: whether the LLM's embeddings of the signal's tokens are added to their hidden states.
    """

    in_width: int
    width: int
    num_queries: int = 77
    inner_width: int = 512
    num_heads: int = 4
    mlp_width: int = 2048
    encoder_layers: int = 4
    decoder_layers: int = 4
    hidden: int | None = None
    activation: str = "gelu"
    pre_norm: bool = False
    out_map: bool = True
    pooled: str = "none"
    adds_embeddings: bool = True

    kind: ClassVar[str] = "queries_output"

    def __post_init__(self):
        check_activation("queries_output.activation", self.activation)
        check_choice("queries_output.pooled", self.pooled, POOLED)
        if self.inner_width % self.num_heads:
            raise ConfigError(
                f"queries_output.inner_width {self.inner_width} is not a multiple of num_heads {self.num_heads}"
            )
        if not self.out_map and self.inner_width != self.width:
            raise ConfigError(
                f"queries_output.width is {self.width} without out_map, so inner_width must be too, not "
                f"{self.inner_width}"
            )
        for name in ("num_queries", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"queries_output.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def block(self) -> BlockConfig:
        """The config of one block on either side."""
        return BlockConfig(
            width=self.inner_width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.inner_width // self.num_heads,
            activation="relu",
            norm="layer",
            norm_eps=1e-5,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )

    def num_tokens(self, signal_tokens: int) -> int:
        """Tokens of a condition: one a query, however long the signal is."""
        return self.num_queries


class QueriesOutput(nn.Module):
    """States [B, K, D] -> Condition with sequence [B, N, width].

    Parameters in_1 (and in_2), queries [N, inner], encoder and decoder stacked, encoder_norm, decoder_norm, out.
    """

    config: QueriesOutputConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> Condition:
        """One signal a row."""
        c = self.config

        def linear(name, width, axes):
            return Linear((width,), axes, use_bias=True, dtype=self.dtype, name=name)

        x = states.astype(self.dtype)
        if c.hidden is None:
            x = linear("in_1", c.inner_width, ("embed", "feature"))(x)
        else:
            x = ACTIVATIONS[c.activation](linear("in_1", c.hidden, ("embed", "mlp"))(x))
            x = linear("in_2", c.inner_width, ("mlp", "feature"))(x)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        queries = self.param("queries", init, (c.num_queries, c.inner_width)).astype(self.dtype)
        memory = self._run("encoder", x, None)
        x = jnp.broadcast_to(queries, (len(x), *queries.shape))
        x = self._run("decoder", x, memory)
        if c.out_map:
            x = linear("out", c.width, ("feature", "embed"))(x)
        return Condition(x, pooled=x.mean(axis=1) if c.pooled == "mean" else None)

    def _run(self, side: str, x: jax.Array, memory: jax.Array | None) -> jax.Array:
        c, cross = self.config, memory is not None
        block = CrossBlock(c.block, not c.pre_norm, cross, self.dtype, parent=None)
        layers = c.decoder_layers if cross else c.encoder_layers
        if self.is_initializing():
            blocks = self.param(side, init_stack(block, layers, jnp.zeros((1, 1, c.inner_width), self.dtype)))
        else:
            blocks = self.get_variable("params", side)

        def apply(layer, x, _):
            variables = {"params": layer}
            keys = block.apply(variables, memory, method="keys") if cross else None
            return block.apply(variables, x, keys=keys)[0], None

        x, _ = run_stack(apply, blocks, x)
        return c.block.norms.module(self.dtype, f"{side}_norm")(x)
