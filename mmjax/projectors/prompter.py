"""The P-Former: a transformer that reads a caption and says which prompt would make an LLM write it.

Jian et al., 2023, "Bootstrapping Vision-Language Learning with Decoupled Language Pre-training". It is trained with
captions alone; what reads images is then drawn to the prompts that it says, see `mmjax.train.prompt_loss`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.nn.block import BlockConfig
from mmjax.nn.cross_block import CrossBlock
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# Rows of `marks`: what stands before every caption and is read off, and what stands in the place of hidden words.
FIRST, HIDDEN = 0, 1


@dataclasses.dataclass(frozen=True)
class PrompterConfig:
    """Sizes of a P-Former; the defaults are those of BERT-base, which the paper begins with.

    Attributes:
        vocab_size: V of the LLM, whose tokens it reads (the paper's has BERT's own).
        num_prompts: Q, tokens of a prompt.
        query_width, num_layers, num_heads, mlp_width: of the transformer.
        max_positions: tokens of a caption that are read; what stands behind them is not.
        activation, norm_eps: of the blocks.
        contrast_width: of the vectors by which captions are told apart.
        temperature: of their similarities, where training begins.
    """

    vocab_size: int
    num_prompts: int = 32
    query_width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 32
    activation: str = "gelu"
    norm_eps: float = 1e-12
    contrast_width: int = 256
    temperature: float = 0.07

    def __post_init__(self):
        check_activation("prompter.activation", self.activation)
        for name in ("vocab_size", "num_prompts", "num_layers", "max_positions", "contrast_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"prompter.{name} must be at least 1, got {getattr(self, name)}")
        if self.query_width % self.num_heads:
            raise ConfigError(
                f"prompter.query_width {self.query_width} is not a multiple of num_heads {self.num_heads}"
            )
        if self.temperature <= 0:
            raise ConfigError(f"prompter.temperature must be positive, got {self.temperature}")

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.query_width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.query_width // self.num_heads,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
        )


class Prompter(nn.Module):
    """Captions to prompts, and to vectors that tell captions apart.

    Parameters: embedding [V, D], position_embedding [1 + max_positions, D], marks [2, D], norm, blocks [L, ...];
    prompts, pool and out, maps D -> Q * D, D -> D and D -> LLM; contrast, D -> contrast width, and temperature.

    Attributes:
        config: sizes.
        width: D of the LLM.
        dtype: compute dtype.
    """

    config: PrompterConfig
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, seen: jax.Array, hidden: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What it makes of captions.

        Args:
            tokens: int [B, T], at most `max_positions`; the caption's first, then padding.
            seen: bool [B, T], False is padding.
            hidden: bool [B, T], words that must be guessed from the others; None: none.

        Returns:
            Prompts [B, Q, LLM width]; float32 vectors [B, contrast width] of length 1; their temperature, float32.
        """
        c, batch = self.config, tokens.shape[0]

        def rows(name, count, axis=None):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (count, c.query_width))

        def linear(name, features):
            return Linear((features,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name=name)

        marks, positions = rows("marks", 2), rows("position_embedding", 1 + c.max_positions)
        words = rows("embedding", c.vocab_size, "vocab")[tokens]
        if hidden is not None:
            words = jnp.where(hidden[..., None], marks[HIDDEN], words)
        first = jnp.broadcast_to(marks[FIRST], (batch, 1, c.query_width))
        x = jnp.concatenate([first, words], axis=1) + positions[: 1 + tokens.shape[1]]
        x = LayerNorm(c.norm_eps, self.dtype, name="norm")(x.astype(self.dtype))
        visible = jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)[:, None]
        block = CrossBlock(c.block, True, False, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.query_width), self.dtype)
            blocks = nn.unbox(self.param("blocks", init_stack(block, c.num_layers, dummy)))
        else:
            blocks = self.get_variable("params", "blocks")
        x, _ = run_stack(lambda layer, x, cache: block.apply({"params": layer}, x, visible, None, cache), blocks, x)
        x = x[:, 0]
        prompts = linear("prompts", c.num_prompts * c.query_width)(x).reshape(batch, c.num_prompts, -1)
        prompts = linear("out", self.width)(jnp.tanh(linear("pool", c.query_width)(prompts)))
        vectors = linear("contrast", c.contrast_width)(x).astype(jnp.float32)
        length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True), 1e-24))
        start = nn.with_logical_partitioning(nn.initializers.constant(c.temperature), ())
        return prompts, vectors / length, self.param("temperature", start, ()).astype(jnp.float32)
