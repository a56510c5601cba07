"""The decoder-only language model: GPT-2, OPT, Bloom, GPT-J, Llama, Qwen, Gemma and their kind by options.

The options' defaults are those of Llama (Touvron et al., 2023): pre-norm blocks with RMSNorm, rotary positions,
grouped key/value heads and a gated MLP. Each other family is a set of options; `mmjax/interop/huggingface/`
says which.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import alibi_slopes
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import contract, fan_in_normal
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.masks import distances, windowed
from mmjax.nn.mlp import check_activation
from mmjax.nn.rotary import RopeScaling, rotation
from mmjax.nn.stack import init_stack, run_stack

POSITIONS = ("rotary", "learned", "alibi")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a decoder.

    Attributes:
        vocab_size, width, num_layers, num_heads, num_kv_heads, head_dim, mlp_width: V, D, L, H, K, C, F.
        max_positions: longest context that the model was made for.
        norm_eps: epsilon of the norms.
        rope_theta, rope_scaling: base of the rotary frequencies and how they are stretched.
        activation: of the MLP.
        qkv_bias, out_bias, mlp_bias: biases on q, k, v; on o; on gate, up, down.
        tie_embeddings: whether the output layer is the embedding.
        lora: low-rank adapters beside the blocks' kernels.
        norm: "rms" or "layer".
        norm_offset: added to the scale of RMSNorms.
        norm_bias: whether layer norms have a bias.
        gated: whether the MLP has a gate beside `up`.
        qk_norm, post_norms, parallel, shared_norm, qkv_clip: see `BlockConfig`.
        position: how tokens know their place: "rotary", "learned" (a table of `max_positions` rows, added to
            the embeddings), or "alibi" (attention's logits fall with distance).
        position_offset: rows of that table before the one of position 0.
        rotary_fraction: which part of each head's channels is rotated, the first ones.
        rotary_interleaved: whether neighbouring channels are rotated against each other.
        sliding_window: how many tokens, itself included, a token of a windowed layer sees; None for no window.
        window_pattern: which layers are windowed, repeated over the depth: (True, False) is every second.
        window_rope_theta: rotary base of windowed layers, which then do without `rope_scaling`; None for
            the same as all.
        attention_scale: factor of q k; None is 1 / sqrt(head_dim).
        attention_cap, logit_cap: soft bounds of attention's logits and of the output layer's.
        embedding_scale: factor of the token embeddings.
        embed_norm: whether embeddings are normalised before the blocks.
        head_bias: whether the output layer has a bias.
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
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_bias: bool = True
    gated: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    parallel: bool = False
    shared_norm: bool = False
    qkv_clip: float | None = None
    position: str = "rotary"
    position_offset: int = 0
    rotary_fraction: float = 1.0
    rotary_interleaved: bool = False
    sliding_window: int | None = None
    window_pattern: tuple[bool, ...] = (True,)
    window_rope_theta: float | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    embed_norm: bool = False
    head_bias: bool = False

    kind: ClassVar[str] = "decoder"

    def __post_init__(self):
        check_activation("backbone.activation", self.activation)
        check_choice("backbone.position", self.position, POSITIONS)
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
        if self.position == "rotary" and (self.rotary_width % 2 or not 0 < self.rotary_width <= self.head_dim):
            raise ConfigError(
                f"backbone.head_dim {self.head_dim} with rotary_fraction {self.rotary_fraction}: rotary positions "
                f"need an even number of channels, from 2 to all of them, not {self.rotary_width}"
            )
        scaling = self.rope_scaling
        if scaling is not None and scaling.type == "longrope" and 2 * len(scaling.short_factor) != self.rotary_width:
            raise ConfigError(
                f"backbone.rope_scaling has {len(scaling.short_factor)} numbers in short_factor and long_factor; "
                f"{self.rotary_width} rotated channels need {self.rotary_width // 2}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"backbone.sliding_window must be at least 1 or None, got {self.sliding_window}")
        if not any(self.window_pattern):
            raise ConfigError("backbone.window_pattern names no windowed layer; for none, sliding_window is None")
        for name in ("qkv_clip", "attention_scale", "attention_cap", "logit_cap", "embedding_scale"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"backbone.{name} must be positive, got {getattr(self, name)}")
        _ = self.block  # which checks its own options

    @property
    def rotary_width(self) -> int:
        """How many channels of a head are rotated."""
        return int(self.head_dim * self.rotary_fraction + 1e-6)

    @property
    def window_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it is windowed."""
        pattern = self.window_pattern if self.sliding_window is not None else (False,)
        return tuple(pattern[layer % len(pattern)] for layer in range(self.num_layers))

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
            norm=self.norm,
            norm_eps=self.norm_eps,
            gated=self.gated,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            mlp_bias=self.mlp_bias,
            lora=self.lora,
            norm_offset=self.norm_offset,
            norm_bias=self.norm_bias,
            qk_norm=self.qk_norm,
            post_norms=self.post_norms,
            parallel=self.parallel,
            shared_norm=self.shared_norm,
            qkv_clip=self.qkv_clip,
            rotary_interleaved=self.rotary_interleaved,
            attention_scale=self.attention_scale,
            attention_cap=self.attention_cap,
        )


class Embedding(nn.Module):
    """A table [V, D], whose rows have the logical axis `axis`."""

    vocab_size: int
    width: int
    axis: str | None = "vocab"

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table itself."""
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (self.axis, "embed"))
        return self.param("embedding", init, (self.vocab_size, self.width))


class OutputLayer(nn.Module):
    """What the output layer has of its own: a kernel [D, V] where it is not tied, and a bias [V] where asked."""

    vocab_size: int
    width: int
    use_kernel: bool = True
    use_bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        """Kernel and bias, each None where there is none."""
        kernel = bias = None
        if self.use_kernel:
            init = nn.with_logical_partitioning(fan_in_normal((self.width,)), ("embed", "vocab"))
            kernel = self.param("kernel", init, (self.width, self.vocab_size))
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            bias = self.param("bias", init, (self.vocab_size,))
        return kernel, bias


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
        if c.position == "learned":
            rows = c.max_positions + c.position_offset
            self.position_table = Embedding(rows, c.width, None, name="positions")
        if c.embed_norm:
            self.embed_norm = c.block.norms.module(self.dtype)
        self.norm = c.block.norms.module(self.dtype)
        if not c.tie_embeddings or c.head_bias:
            self.lm_head = OutputLayer(c.vocab_size, c.width, not c.tie_embeddings, c.head_bias)
        block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")
        self.block = block

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in `dtype`."""
        embedded = self.embed_table()[tokens].astype(self.dtype)
        scale = self.config.embedding_scale
        return embedded if scale == 1 else embedded * jnp.asarray(scale, self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final-normed hidden states [..., D] -> float32 [..., V]."""
        tied, cap = self.config.tie_embeddings, self.config.logit_cap
        kernel, bias = self.lm_head() if not tied or self.config.head_bias else (None, None)
        kernel = self.embed_table() if tied else kernel
        logits = contract(hidden.astype(self.dtype), kernel.astype(self.dtype), 1, tied, jnp.float32)
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)
        return logits if cap is None else cap * jnp.tanh(logits / cap)

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
        x = constrain(embeddings.astype(self.dtype), "batch", "length", "act_embed")
        if c.position == "learned":
            x = x + self.position_table()[positions + c.position_offset].astype(self.dtype)
        if c.embed_norm:
            x = self.embed_norm(x)
        alibi = (alibi_slopes(c.num_heads), distances(mask)) if c.position == "alibi" else None
        whole, near = self._views(positions, mask)
        mixed = len(set(c.window_layers)) > 1

        def apply(layer, x, layer_cache):
            if mixed:
                params, (seen, angles) = layer["params"], _pick(layer["windowed"], near, whole)
            else:
                params, (seen, angles) = layer, near if c.window_layers[0] else whole
            return self.block.apply({"params": params}, x, seen, angles, layer_cache, cache_index, alibi)

        blocks = _with_kinds(self.blocks, c.window_layers) if mixed else self.blocks
        x, cache = run_stack(apply, blocks, x, cache, self.remat)
        return self.norm(x), cache

    def _views(self, positions: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
        """(mask, rotary cos and sin or None) of the layers that see all, and of those with a window."""
        c = self.config

        def angles(theta, scaling):
            return rotation(positions, c.rotary_width, theta, scaling) if c.position == "rotary" else None

        whole = near = mask, angles(c.rope_theta, c.rope_scaling)
        if c.sliding_window is not None:
            own = whole[1] if c.window_rope_theta is None else angles(c.window_rope_theta, None)
            near = windowed(mask, c.sliding_window), own
        return whole, near

    def create(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs."""
        hidden, _ = self(self.embed(tokens), jnp.zeros_like(tokens), jnp.ones((1, 1, 1), bool))
        return self.logits(hidden)


def _with_kinds(blocks: Any, windowed: tuple[bool, ...]) -> Any:
    """Blocks of either form with, beside each layer's params, whether it is windowed: what a scan slices too."""
    if isinstance(blocks, tuple):
        return tuple(
            {"params": params, "windowed": kind} for params, kind in zip(blocks, windowed, strict=True)
        )
    return {"params": blocks, "windowed": jnp.asarray(windowed)}


def _pick(windowed: bool | jax.Array, near: Any, whole: Any) -> Any:
    """One layer's view: known where layers are unrolled, selected as it runs where they are scanned."""
    if isinstance(windowed, bool):
        return near if windowed else whole
    return jax.tree.map(lambda a, b: jnp.where(windowed, a, b), near, whole)
