"""The encoder-decoder language model: T5 and Flan-T5, BART, by options.

The encoder reads a query, text and media in one sequence, in both directions; the decoder writes the answer and
reads the encoder's output through cross-attention (Vaswani et al., 2017). The options' defaults are those of
T5 1.1 (Raffel et al., 2020): pre-norm blocks with RMSNorm, relative positions shared by all layers, unscaled
attention and a gated MLP. BART (Lewis et al., 2020) is a set of options.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones.decoder import Embedding, OutputLayer
from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import LayerCache
from mmjax.nn.block import BlockConfig
from mmjax.nn.cross_block import CrossBlock
from mmjax.nn.linear import contract
from mmjax.nn.masks import distances
from mmjax.nn.mlp import check_activation
from mmjax.nn.relative import RelativeBias
from mmjax.nn.stack import init_stack, run_stack, side_by_side

POSITIONS = ("relative", "learned")


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Sizes and options of an encoder and a decoder.

    Attributes:
        vocab_size, width: V, D of both.
        num_layers, num_heads, head_dim, mlp_width: L, H, C, F of the decoder.
        encoder_layers, encoder_heads, encoder_mlp_width: of the encoder, None where they are the decoder's. Heads
            of another number have another width: H C is the same in both.
        start_token: what the decoder begins with.
        max_positions: longest text on either side. Relative positions know no bound, so that nothing but
            memory hangs on it there.
        norm, norm_eps: "rms" or "layer", and its epsilon.
        post_norm: see `CrossBlock`; without it each side ends in a norm of its own.
        activation, gated: of the MLPs.
        use_bias: whether the blocks' maps have biases.
        position: "relative" (buckets of distances, see `RelativeBias`) or "learned" (a table of `max_positions`
            rows on either side, added to the embeddings).
        position_offset: rows of those tables before the one of position 0.
        relative_buckets, relative_max_distance: how many buckets, and from where on all distances are one.
        attention_scale: factor of q k; None is 1 / sqrt(C).
        embedding_scale: factor of the token embeddings.
        embed_norm: whether embeddings are normalised before the blocks.
        tie_embeddings: whether the output layer is the embedding.
        logit_scale: factor of what the output layer reads.
        head_bias: whether the output layer has a bias.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_width: int
    encoder_layers: int | None = None
    encoder_heads: int | None = None
    encoder_mlp_width: int | None = None
    start_token: int = 0
    max_positions: int = 32768
    norm: str = "rms"
    norm_eps: float = 1e-6
    post_norm: bool = False
    activation: str = "gelu_tanh"
    gated: bool = True
    use_bias: bool = False
    position: str = "relative"
    position_offset: int = 0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    attention_scale: float | None = 1.0
    embedding_scale: float = 1.0
    embed_norm: bool = False
    tie_embeddings: bool = True
    logit_scale: float = 1.0
    head_bias: bool = False

    kind: ClassVar[str] = "encoder_decoder"
    lora: ClassVar[None] = None  # adapters are for decoders as yet

    def __post_init__(self):
        check_activation("backbone.activation", self.activation)
        check_choice("backbone.position", self.position, POSITIONS)
        for name in (
            "vocab_size", "width", "num_layers", "num_heads", "head_dim", "mlp_width", "encoder_layers",
            "encoder_heads", "encoder_mlp_width", "max_positions",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"backbone.{name} must be at least 1, got {value}")
        if self.encoder_heads and (self.num_heads * self.head_dim) % self.encoder_heads:
            raise ConfigError(
                f"backbone.encoder_heads {self.encoder_heads} does not divide num_heads {self.num_heads} "
                f"* head_dim {self.head_dim}"
            )
        if not 0 <= self.start_token < self.vocab_size:
            raise ConfigError(
                f"backbone.start_token {self.start_token} is outside the vocabulary of {self.vocab_size}"
            )
        # Both directions halve the buckets, and half of those are for single distances.
        if self.position == "relative" and not 4 <= self.relative_buckets <= self.relative_max_distance:
            raise ConfigError(
                f"backbone.relative_buckets must be at least 4 and at most relative_max_distance "
                f"{self.relative_max_distance}, got {self.relative_buckets}"
            )
        for name in ("attention_scale", "embedding_scale", "logit_scale"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"backbone.{name} must be positive, got {getattr(self, name)}")
        _ = self.block(True)  # which checks its own options

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of the decoder: one a query head."""
        return self.num_heads

    def depth(self, decodes: bool) -> int:
        """Layers of the decoder, or of the encoder."""
        return self.num_layers if decodes else self.encoder_layers or self.num_layers

    def block(self, decodes: bool) -> BlockConfig:
        """The config of one block of the decoder, or of the encoder."""
        heads = self.num_heads if decodes else self.encoder_heads or self.num_heads
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width if decodes else self.encoder_mlp_width or self.mlp_width,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=self.num_heads * self.head_dim // heads,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            gated=self.gated,
            qkv_bias=self.use_bias,
            out_bias=self.use_bias,
            mlp_bias=self.use_bias,
            attention_scale=self.attention_scale,
        )


class Side(nn.Module):
    """The encoder, or with `decodes` the decoder: embeddings in, hidden states out.

    Parameters: blocks [L, ...]; norm where blocks are pre-norm; relative or positions; embed_norm where asked.
    """

    config: EncoderDecoderConfig
    decodes: bool
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c, block = self.config, self.config.block(self.decodes)
        if c.position == "relative":
            size = block.num_heads, c.relative_buckets, c.relative_max_distance
            self.relative = RelativeBias(*size, bidirectional=not self.decodes)
        else:
            self.positions = Embedding(c.max_positions + c.position_offset, c.width, None)
        if c.embed_norm:
            self.embed_norm = block.norms.module(self.dtype)
        if not c.post_norm:
            self.norm = block.norms.module(self.dtype)
        self.block = CrossBlock(block, c.post_norm, self.decodes, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.depth(self.decodes), dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def keys(self, memory: jax.Array) -> Any:
        """Keys and values of every layer's cross-attention, as `EncoderDecoder.cross_keys`."""
        one = lambda layer: self.block.apply({"params": layer}, memory, method="keys")
        return tuple(map(one, self.blocks)) if isinstance(self.blocks, tuple) else jax.lax.map(one, self.blocks)

    def __call__(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
        memory: Any = None,
        memory_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Arguments and results as `EncoderDecoder.__call__`."""
        c = self.config
        x = constrain(embeddings.astype(self.dtype), "batch", "length", "act_embed")
        bias = None
        if c.position == "learned":
            x = x + self.positions()[positions + c.position_offset].astype(self.dtype)
        else:
            bias = self.relative(distances(mask))
        if c.embed_norm:
            x = self.embed_norm(x)

        made = isinstance(memory, tuple)

        def apply(layer, x, layer_cache):
            variables, keys = {"params": layer["params"] if made else layer}, None
            if self.decodes:
                keys = layer["keys"] if made else self.block.apply(variables, memory, method="keys")
            return self.block.apply(variables, x, mask, bias, layer_cache, cache_index, keys, memory_mask)

        blocks = self.blocks
        if made:
            # Beside each layer's params, not in the cache: a scan would copy them at every step.
            blocks = side_by_side(params=blocks, keys=memory)
        x, cache = run_stack(apply, blocks, x, cache, self.remat)
        return x if c.post_norm else self.norm(x), cache


class EncoderDecoder(nn.Module):
    """Embeddings in, hidden states of the decoder out; `embed`, `encode`, `cross_keys`, `logits` besides.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks, see `mmjax.nn.stack`.
    """

    config: EncoderDecoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.embed_table = Embedding(c.vocab_size, c.width, name="embed")
        self.encoder = Side(c, False, self.dtype, self.remat)
        self.decoder = Side(c, True, self.dtype, self.remat)
        if not c.tie_embeddings or c.head_bias:
            self.lm_head = OutputLayer(c.vocab_size, c.width, not c.tie_embeddings, c.head_bias)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in `dtype`, for either side."""
        embedded = self.embed_table()[tokens].astype(self.dtype)
        scale = self.config.embedding_scale
        return embedded if scale == 1 else embedded * jnp.asarray(scale, self.dtype)

    def encode(self, embeddings: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """What the decoder reads of a query, [B, S, D].

        Args:
            embeddings: [B, S, D], text and media already in place.
            positions: int32 [B, S]; read where positions are learned.
            mask: bool [B, S], False is padding; or [B, S, S], which place sees which.
        """
        if mask.ndim == 2:
            mask = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        return self.encoder(embeddings, positions, mask)[0]

    def cross_keys(self, memory: jax.Array) -> Any:
        """Keys and values that the decoder's layers make of memory [B, S, D], once for all its tokens.

        Returns:
            Where blocks are unstacked a tuple of one (k, v) a layer, each [B, H, S, C]; else one (k, v) with
            leaves [L, B, H, S, C].
        """
        return self.decoder.keys(memory)

    def __call__(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
        memory: jax.Array | tuple[LayerCache, ...] | LayerCache | None = None,
        memory_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the decoder.

        Args:
            embeddings, positions, mask, cache, cache_index: as `Decoder.__call__`. Relative positions count the
                tokens that the mask lets be seen, so padding and empty slots of a cache take no place.
            memory: [B, S, D] as `encode` gives it, or what `cross_keys` made of it.
            memory_mask: bool [B, S], False is padding; or [B, T, S], which token sees which place.

        Returns:
            hidden [B, T, D], and the cache.

        Raises:
            ValueError: there is no memory to read.
        """
        if memory is None:
            raise ValueError("an encoder-decoder's decoder needs the memory of a query: see `encode`")
        if memory_mask is not None and memory_mask.ndim == 2:
            memory_mask = memory_mask[:, None]
        return self.decoder(embeddings, positions, mask, cache, cache_index, memory, memory_mask)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 [..., V]."""
        c = self.config
        kernel, bias = self.lm_head() if not c.tie_embeddings or c.head_bias else (None, None)
        kernel = self.embed_table() if c.tie_embeddings else kernel
        hidden = hidden.astype(self.dtype)
        hidden = hidden if c.logit_scale == 1 else hidden * jnp.asarray(c.logit_scale, self.dtype)
        logits = contract(hidden, kernel.astype(self.dtype), 1, c.tie_embeddings, jnp.float32)
        return logits if bias is None else logits + bias.astype(jnp.float32)

    def create(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs."""
        x, positions, mask = self.embed(tokens), jnp.zeros_like(tokens), jnp.ones((1, 1, 1), bool)
        hidden, _ = self(x, positions, mask, memory=self.encode(x, positions, mask))
        return self.logits(hidden)
