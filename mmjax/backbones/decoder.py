"""The decoder-only language model: GPT-2, OPT, Bloom, GPT-J, Llama, Qwen, Gemma and their kind by options.

The options' defaults are those of Llama (Touvron et al., 2023): pre-norm blocks with RMSNorm, rotary positions,
grouped key/value heads and a gated MLP. Each other family is a set of options; `mmjax/interop/huggingface/`
says which.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones.fusion import FUSIONS, FusionConfig
from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import alibi_slopes
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import contract, fan_in_normal
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.masks import distances, windowed
from mmjax.nn.mlp import check_activation
from mmjax.nn.moe import MixtureConfig
from mmjax.nn.rotary import RopeScaling, axis_of_frequency, rotation
from mmjax.nn.sincos import sincos_1d
from mmjax.nn.stack import init_stack, run_stack, side_by_side

POSITIONS = ("rotary", "learned", "sinusoidal", "alibi")
NO_ROUTERS = "router_logits: backbone.moe is None and backbone.fusion does not route, so there are no routers"


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
        qk_norm, head_norms, post_norms, parallel, shared_norm, qkv_clip, sub_norm: see `BlockConfig`.
        position: how tokens know their place: "rotary", "learned" (a table of `max_positions` rows, added to
            the embeddings), "sinusoidal" (a table that is computed), or "alibi" (attention's logits fall with
            distance).
        position_offset: rows of that table before the one of position 0.
        rotary_fraction: which part of each head's channels is rotated, the first ones.
        rotary_interleaved: whether neighbouring channels are rotated against each other.
        rope_sections: channel pairs that the (time, height, width) of a position turn; () for positions of one
            number.
        rope_interleaved_sections: see `axis_of_frequency`.
        sliding_window: how many tokens, itself included, a token of a windowed layer sees; None for no window.
        window_pattern: which layers are windowed, repeated over the depth: (True, False) is every second.
        window_rope_theta: rotary base of windowed layers, which then do without `rope_scaling`; None for
            the same as all.
        window_pairs: whether windows also hold between tokens that see each other both ways, see `windowed`.
        attention_scale: factor of q k; None is 1 / sqrt(head_dim).
        attention_cap, logit_cap: soft bounds of attention's logits and of the output layer's.
        embedding_scale: factor of the token embeddings.
        embed_norm: whether embeddings are normalised before the blocks.
        head_bias: whether the output layer has a bias.
        moe: experts in place of every layer's MLP, whose `mlp_width` then means nothing.
        new_tokens: how many of the V rows of the vocabulary, the last ones, are leaves of their own (embed_new,
            lm_head_new), so that they can be trained apart.
        untied_new_tokens: whether the output layer's new rows are its own even where the others are tied.
        fusion: what reads media inside the decoder.
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
    sub_norm: bool = False
    position: str = "rotary"
    position_offset: int = 0
    rotary_fraction: float = 1.0
    rotary_interleaved: bool = False
    rope_sections: tuple[int, ...] = ()
    rope_interleaved_sections: bool = False
    sliding_window: int | None = None
    window_pattern: tuple[bool, ...] = (True,)
    window_rope_theta: float | None = None
    window_pairs: bool = True
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    embed_norm: bool = False
    head_bias: bool = False
    moe: MixtureConfig | None = None
    new_tokens: int = 0
    untied_new_tokens: bool = False
    fusion: FusionConfig | None = None
    head_norms: bool = False

    kind: ClassVar[str] = "decoder"

    @property
    def ties_new_tokens(self) -> bool:
        """Whether the output layer's new rows are those of the embedding."""
        return self.tie_embeddings and not self.untied_new_tokens

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
        if self.rope_sections and (self.position != "rotary" or 2 * sum(self.rope_sections) != self.rotary_width):
            raise ConfigError(
                f"backbone.rope_sections {self.rope_sections} are {sum(self.rope_sections)} channel pairs; "
                f"{self.rotary_width if self.position == 'rotary' else 0} rotated channels have half as many"
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
        if not 0 <= self.new_tokens < self.vocab_size:
            raise ConfigError(
                f"backbone.new_tokens must be at least 0 and below vocab_size {self.vocab_size}, got {self.new_tokens}"
            )
        block = self.block  # which checks its own options
        if self.fusion is not None:
            self.fusion.check(block, self.num_layers)

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
    def router_top_k(self) -> int | None:
        """How many experts of a layer a token is routed to, be they the layers' own or the fusion's; None: to none."""
        return getattr(self.fusion, "router_top_k", None) if self.moe is None else self.moe.top_k

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
            head_norms=self.head_norms,
            post_norms=self.post_norms,
            parallel=self.parallel,
            shared_norm=self.shared_norm,
            qkv_clip=self.qkv_clip,
            rotary_interleaved=self.rotary_interleaved,
            attention_scale=self.attention_scale,
            attention_cap=self.attention_cap,
            sub_norm=self.sub_norm,
            moe=self.moe,
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
    """What the output layer has of its own: a kernel [D, V] where it is not tied, and a bias [V] where asked.

    The logical axis of V is `axis`.
    """

    vocab_size: int
    width: int
    use_kernel: bool = True
    use_bias: bool = False
    axis: str | None = "vocab"

    @nn.compact
    def __call__(self) -> tuple[jax.Array | None, jax.Array | None]:
        """Kernel and bias, each None where there is none."""
        kernel = bias = None
        if self.use_kernel:
            init = nn.with_logical_partitioning(fan_in_normal((self.width,)), ("embed", self.axis))
            kernel = self.param("kernel", init, (self.width, self.vocab_size))
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
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
        rows = c.vocab_size - c.new_tokens
        self.embed_table = Embedding(rows, c.width, name="embed")
        if c.new_tokens:
            self.embed_new = Embedding(c.new_tokens, c.width, None)
        if c.position == "learned":
            places = c.max_positions + c.position_offset
            self.position_table = Embedding(places, c.width, None, name="positions")
        if c.embed_norm:
            self.embed_norm = c.block.norms.module(self.dtype)
        self.norm = c.block.norms.module(self.dtype)
        if not c.tie_embeddings or c.head_bias:
            self.lm_head = OutputLayer(rows, c.width, not c.tie_embeddings, c.head_bias)
        if c.new_tokens and (not c.ties_new_tokens or c.head_bias):
            self.lm_head_new = OutputLayer(c.new_tokens, c.width, not c.ties_new_tokens, c.head_bias, None)
        if c.fusion is not None:
            self.fusion = FUSIONS[type(c.fusion)](c.fusion, c.block, c.num_layers, self.dtype, self.remat)
        block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")
        self.block = block

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in `dtype`."""
        scale, old = self.config.embedding_scale, self.config.vocab_size - self.config.new_tokens
        embedded = self.embed_table()[tokens].astype(self.dtype)
        if self.config.new_tokens:
            new = self.embed_new()[jnp.maximum(tokens - old, 0)].astype(self.dtype)
            embedded = jnp.where(tokens[..., None] < old, embedded, new)
        return embedded if scale == 1 else embedded * jnp.asarray(scale, self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final-normed hidden states [..., D] -> float32 [..., V]."""
        c = self.config
        heads = [("lm_head", "embed_table", c.tie_embeddings)]
        heads += [("lm_head_new", "embed_new", c.ties_new_tokens)] * bool(c.new_tokens)

        def rows(head, table, tied):
            kernel, bias = getattr(self, head)() if not tied or c.head_bias else (None, None)
            kernel = getattr(self, table)() if tied else kernel
            logits = contract(hidden.astype(self.dtype), kernel.astype(self.dtype), 1, tied, jnp.float32)
            return logits if bias is None else logits + bias.astype(jnp.float32)

        logits = jnp.concatenate([rows(*names) for names in heads], axis=-1) if len(heads) > 1 else rows(*heads[0])
        cap = c.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def cross_keys(self, memory: jax.Array) -> Any:
        """What the fusion makes of media tokens [B, N, media width], once for all text tokens.

        Returns:
            Of gated cross-attention the keys and values: where blocks are unstacked a tuple of one (k, v) a layer,
            each [B, K, N, C]; else one (k, v) with leaves [G, B, K, N, C]. Of prompts the tokens themselves.
        """
        return self.fusion.keys(memory)

    def __call__(
        self,
        embeddings: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Any = None,
        cache_index: jax.Array | int = 0,
        memory: Any = None,
        memory_mask: jax.Array | None = None,
        is_media: jax.Array | None = None,
        router_logits: bool = False,
    ) -> tuple[jax.Array, ...]:
        """Runs the blocks and the final norm.

        Args:
            embeddings: [B, T, D], text and media already in place.
            positions: int32 [B, T], or [B, T, 3] with rope_sections.
            mask: bool [B, T, S]; S is T without a cache, or in a prefill, else the cache's length.
            cache: None or one (k, v) a layer, see `run_stack`.
            cache_index: where in the cache the T new keys are written.
            memory: what the fusion reads, media tokens [B, N, media width] or what `cross_keys` made of them; None
                where there are no media.
            memory_mask: bool [B, T, N], which token sees which media token; or [B, N], the same for all tokens.
            is_media: bool [B, T], which tokens are of media, for fusion that treats them otherwise; None: none is.
            router_logits: whether the routers' logits are returned too, for `mmjax.nn.moe`'s load and loss.

        Returns:
            hidden [B, T, D], and the cache; with `router_logits`, third, float32 [L, B, T, E].

        Raises:
            ConfigError: router_logits of a decoder whose tokens are not routed to experts.
        """
        c = self.config
        if router_logits and c.router_top_k is None:
            raise ConfigError(NO_ROUTERS)
        x = constrain(embeddings.astype(self.dtype), "batch", "length", "act_embed")
        if c.position == "learned":
            x = x + self.position_table()[positions + c.position_offset].astype(self.dtype)
        if c.position == "sinusoidal":
            x = x + sincos_1d(positions + c.position_offset, c.width).astype(self.dtype)
        if c.embed_norm:
            x = self.embed_norm(x)
        alibi = (alibi_slopes(c.num_heads), distances(mask)) if c.position == "alibi" else None
        whole, near = self._views(positions, mask)
        mixed = len(set(c.window_layers)) > 1

        def apply(layer, x, layer_cache, block=self.block, beside=None, **inside):
            if mixed:
                params, (seen, angles) = layer["params"], _pick(layer["windowed"], near, whole)
            else:
                params, (seen, angles) = layer, near if c.window_layers[0] else whole
            params = params if beside is None else _joined(params, beside)
            return block.apply(
                {"params": params}, x, seen, angles, layer_cache, cache_index, alibi, router_logits, **inside
            )

        blocks = self.blocks
        if mixed:
            unrolled = isinstance(blocks, tuple)
            kinds = c.window_layers if unrolled else jnp.asarray(c.window_layers)
            blocks = side_by_side(params=blocks, windowed=kinds)
        if memory_mask is not None and memory_mask.ndim == 2:
            memory_mask = memory_mask[:, None]

        def run(cache):
            if c.fusion is None:
                return run_stack(apply, blocks, x, cache, self.remat)
            return self.fusion(apply, blocks, x, cache, memory, memory_mask, is_media)

        if not router_logits:
            x, cache = run(cache)
            return self.norm(x), cache
        # A loop over layers keeps what they give only where it was handed something for each.
        empty = (None,) * c.num_layers if isinstance(blocks, tuple) else None
        x, given = run(empty if cache is None else cache)
        new, logits = zip(*given, strict=True) if isinstance(blocks, tuple) else given
        logits = jnp.stack(logits) if isinstance(blocks, tuple) else logits
        return self.norm(x), None if cache is None else new, logits

    def _views(self, positions: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
        """(mask, rotary cos and sin or None) of the layers that see all, and of those with a window."""
        c = self.config

        axes = axis_of_frequency(c.rope_sections, c.rope_interleaved_sections) if c.rope_sections else None

        def angles(theta, scaling):
            return rotation(positions, c.rotary_width, theta, scaling, axes) if c.position == "rotary" else None

        whole = near = mask, angles(c.rope_theta, c.rope_scaling)
        if c.sliding_window is not None:
            own = whole[1] if c.window_rope_theta is None else angles(c.window_rope_theta, None)
            near = windowed(mask, c.sliding_window, c.window_pairs), own
        return whole, near

    def create(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs."""
        hidden, _ = self(self.embed(tokens), jnp.zeros_like(tokens), jnp.ones((1, 1, 1), bool))
        return self.logits(hidden)


def _joined(params: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """One layer's parameters with further ones beside them, which may stand deep inside."""
    out = dict(params)
    for name, leaf in beside.items():
        out[name] = _joined(out[name], leaf) if isinstance(leaf, Mapping) and name in out else leaf
    return out


def _pick(windowed: bool | jax.Array, near: Any, whole: Any) -> Any:
    """One layer's view: known where layers are unrolled, selected as it runs where they are scanned."""
    if isinstance(windowed, bool):
        return near if windowed else whole
    return jax.tree.map(lambda a, b: jnp.where(windowed, a, b), near, whole)
