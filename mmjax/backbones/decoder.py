"""The decoder-only language model: Llama 1 to 3 and Qwen2 by options.

Touvron et al., 2023 (LLaMA); Dubey et al., 2024 (Llama 3); Yang et al., 2024 (Qwen2). Pre-norm blocks with
RMSNorm, rotary positions, grouped key/value heads and a gated MLP.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.distributed.rules import constrain
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import contract, fan_in_normal
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import RMSNorm
from mmjax.nn.rotary import RopeScaling, rotation
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a decoder.

    Attributes:
        vocab_size, width, num_layers, num_heads, num_kv_heads, head_dim, mlp_width: V, D, L, H, K, C, F.
        max_positions: longest context that the model was made for.
        norm_eps: epsilon of the RMSNorms.
        rope_theta, rope_scaling: base of the rotary frequencies and how they are stretched.
        activation: of the gated MLP.
        qkv_bias, out_bias, mlp_bias: biases on q, k, v; on o; on gate, up, down.
        tie_embeddings: whether the output layer is the embedding.
        lora: low-rank adapters beside the blocks' kernels.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    lora: LoRAConfig | None = None

    kind: ClassVar[str] = "decoder"

    def __post_init__(self):
        check_activation("backbone.activation", self.activation)
        for name in (
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_width",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"backbone.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"backbone.num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"backbone.head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            activation=self.activation,
            norm="rms",
            norm_eps=self.norm_eps,
            gated=True,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            mlp_bias=self.mlp_bias,
            lora=self.lora,
        )


class Embedding(nn.Module):
    """A table [V, D]."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table itself."""
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        return self.param("embedding", init, (self.vocab_size, self.width))


class OutputKernel(nn.Module):
    """The untied output layer's kernel [D, V]."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel itself."""
        init = nn.with_logical_partitioning(fan_in_normal((self.width,)), ("embed", "vocab"))
        return self.param("kernel", init, (self.width, self.vocab_size))


class Decoder(nn.Module):
    """Embeddings in, final-normed hidden states out; `embed` and `logits` are methods of their own.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks, see `mmjax.nn.stack`.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.embed_table = Embedding(c.vocab_size, c.width, name="embed")
        self.norm = RMSNorm(c.norm_eps, self.dtype)
        if not c.tie_embeddings:
            self.lm_head = OutputKernel(c.vocab_size, c.width)
        block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")
        self.block = block

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in `dtype`."""
        return self.embed_table()[tokens].astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final-normed hidden states [..., D] -> float32 [..., V]."""
        tied = self.config.tie_embeddings
        kernel = self.embed_table() if tied else self.lm_head()
        return contract(hidden.astype(self.dtype), kernel.astype(self.dtype), 1, tied, jnp.float32)

    def __call__(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
    ) -> tuple[jax.Array, Any]:
        """Runs the blocks and the final norm.

        Args:
            embeddings: [B, T, D], text and media already in place.
            positions: int32 [B, T].
            mask: bool [B, T, S]; S is T without a cache, or in a prefill, else the cache's length.
            cache: None or one (k, v) a layer, see `run_stack`.
            cache_index: where in the cache the T new keys are written.

        Returns:
            hidden [B, T, D], and the cache.
        """
        c = self.config
        angles = rotation(positions, c.head_dim, c.rope_theta, c.rope_scaling)
        x = constrain(embeddings.astype(self.dtype), "batch", "length", "act_embed")

        def apply(params, x, layer_cache):
            return self.block.apply({"params": params}, x, mask, angles, layer_cache, cache_index)

        x, cache = run_stack(apply, self.blocks, x, cache, self.remat)
        return self.norm(x), cache

    def create(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs."""
        hidden, _ = self(self.embed(tokens), jnp.zeros_like(tokens), jnp.ones((1, 1, 1), bool))
        return self.logits(hidden)
