"""Multi-head attention with grouped key/value heads, rotary positions and an explicit cache."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.distributed.rules import constrain
from mmjax.nn.linear import Linear
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.norms import NormConfig
from mmjax.nn.rotary import rotate

# One layer's cache: keys and values, each [B, K, S, C], head-major so that decoding reads each head's
# keys in one run of memory.
LayerCache = tuple[jax.Array, jax.Array]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """float32 [H]: what each head's logits lose for every token of distance (Press et al., 2022, "ALiBi").

    2^(-8 i / H) for i from 1 to H; where H is no power of two, those of the next smaller one, then every
    second of the next larger one.
    """
    whole = 2 ** int(math.log2(num_heads))
    powers = np.arange(1, whole + 1) * (8 / whole)
    between = np.arange(1, 2 * whole, 2) * (4 / whole)
    return (2.0 ** -np.concatenate([powers, between])[:num_heads]).astype(np.float32)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    scale: float | None = None,
    cap: float | None = None,
    alibi: tuple[np.ndarray, jax.Array] | None = None,
    bias: jax.Array | None = None,
    dropout: tuple[float, jax.Array] | None = None,
) -> jax.Array:
    """softmax(q k / sqrt(C)) v with grouped heads; the softmax is in float32.

    Args:
        q: [B, T, H, C].
        k, v: [B, K, S, C] with H a multiple of K.
        mask: bool, broadcastable to [B, T, S]; False is not seen. A row that sees nothing gets the mean of v.
        scale: factor of q k instead of 1 / sqrt(C).
        cap: logits are squeezed into (-cap, cap) by cap * tanh(logits / cap) (Gemma 2).
        alibi: slopes [H] and the distances [B, T, S] whose multiples are taken off the logits.
        bias: what is added to the logits, broadcastable to [B, H, T, S] (relative positions).
        dropout: share of the softmax's weights that are dropped, the others made larger instead, and the key that
            says which.

    Returns:
        [B, T, H, C] in q's dtype.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[1]
    # The query heads of a group are rows of one product with the group's keys. Both products are spelt as
    # [rows, C] x [S, C] and [rows, S] x [S, C]: einsum would turn them round and copy what is largest.
    q = q.reshape(batch, length, groups, -1, width).swapaxes(1, 2).reshape(batch, groups, -1, width)
    both = (0, 1), (0, 1)
    logits = jax.lax.dot_general(q, k, (((3,), (3,)), both), preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(width) if scale is None else logits * scale
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    if alibi is not None:
        slopes = jnp.tile(alibi[0].reshape(groups, -1), (1, length))
        away = jnp.repeat(alibi[1], heads // groups, axis=1)
        logits = logits - slopes[:, :, None] * away[:, None]
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], heads, length, k.shape[2]))
        bias = bias.reshape(-1, groups, heads // groups, length, k.shape[2]).swapaxes(2, 3)
        logits = logits + bias.reshape(-1, *logits.shape[1:])
    if mask is not None:
        # Brought to the logits' shape, not they to its: what the backward pass keeps is then kept once.
        mask = jnp.repeat(jnp.broadcast_to(mask, (*mask.shape[:1], length, mask.shape[2])), heads // groups, axis=1)
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if dropout is not None:
        kept = jax.random.bernoulli(dropout[1], 1 - dropout[0], weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout[0]), 0)
    out = jax.lax.dot_general(weights, v, (((3,), (2,)), both)).reshape(batch, groups, length, -1, width)
    return out.swapaxes(1, 2).reshape(batch, length, heads, width)


class Attention(nn.Module):
    """Self-attention, or cross-attention when `source` is given.

    Parameters q [D, H, C], k and v [D, K, C], o [H, C, D], with biases where asked.

    Attributes:
        width, num_heads, num_kv_heads, head_dim: D, H, K, C.
        qkv_bias, out_bias: biases on q, k, v and on o.
        lora: LoRA config of the block, or None.
        dtype: compute dtype.
        qk_norm: normalisation of every head of q and of k, over C, before they are rotated.
        qkv_clip: q, k and v are clipped to -qkv_clip .. qkv_clip.
        rotary_interleaved: whether neighbouring channels are rotated against each other, see `rotate`.
        scale, cap: see `attend`.
        joint_qk_norm: whether qk_norm is over all heads together, over H * C.
        inner_norm: normalisation of what all heads give together, over H * C, before o (Wang et al., 2022, "Magneto").
        dropout: share of the softmax's weights that `read` drops where the rng "dropout" is given.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    lora: LoRAConfig | None = None
    dtype: jnp.dtype = jnp.float32
    qk_norm: NormConfig | None = None
    qkv_clip: float | None = None
    rotary_interleaved: bool = False
    scale: float | None = None
    cap: float | None = None
    inner_norm: NormConfig | None = None
    joint_qk_norm: bool = False
    dropout: float = 0.0

    def setup(self):
        def linear(name, features, axes, in_dims, bias):
            lora = self.lora.at(name) if self.lora else None
            return Linear(features, axes, in_dims=in_dims, use_bias=bias, lora=lora, dtype=self.dtype)

        kv = (self.num_kv_heads, self.head_dim)
        self.q = linear(
            "q", (self.num_heads, self.head_dim), ("embed", "heads", "head_dim"), 1, self.qkv_bias
        )
        self.k = linear("k", kv, ("embed", "kv_heads", "head_dim"), 1, self.qkv_bias)
        self.v = linear("v", kv, ("embed", "kv_heads", "head_dim"), 1, self.qkv_bias)
        self.o = linear("o", (self.width,), ("heads", "head_dim", "embed"), 2, self.out_bias)
        if self.qk_norm is not None:
            self.q_norm, self.k_norm = self.qk_norm.module(self.dtype), self.qk_norm.module(self.dtype)
        if self.inner_norm is not None:
            self.sub_norm = self.inner_norm.module(self.dtype)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        cache: LayerCache | None = None,
        cache_index: jax.Array | int = 0,
        source: jax.Array | None = None,
        alibi: tuple[np.ndarray, jax.Array] | None = None,
        bias: jax.Array | None = None,
        prompts: tuple[jax.Array, ...] | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> ([B, T, D], the updated cache); mask, alibi and bias as in `attend`.

        With a cache, the T new keys are written at `cache_index`. They are then attended to alone when the
        mask is [B, T, T] (a prefill from an empty cache), or together with the whole cache when it is
        [B, T, S].

        `prompts` are [B or 1, P, D] and a gate [H] or [1]: what each token reads of them, with a softmax of their own,
        is added gate times (Zhang et al., 2023, "LLaMA-Adapter"). A third item is a mask, bool broadcastable to
        [B, T, P]: a token that sees none reads nothing.
        """
        q, k, v = self.project(x, rotation, source)
        heads, cache = self.read(q, k, v, mask, cache, cache_index, alibi, bias)
        if prompts is not None:
            read = (jnp.broadcast_to(item, (q.shape[0], *item.shape[1:])) for item in self.keys(prompts[0]))
            seen = prompts[2] if len(prompts) > 2 else None
            more = attend(q, *read, seen, self.scale, self.cap)
            more = more if seen is None else jnp.where(jnp.any(seen, axis=-1)[..., None, None], more, 0)
            heads = heads + prompts[1][:, None] * more
        return self.out(heads), cache

    def project(
        self,
        x: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        source: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, C] of x [B, T, D], keys and values [B, S, K, C] of `source` (x if None), for `read`."""
        source = x if source is None else source
        q, k, v = self.q(x), self.k(source), self.v(source)
        if self.qkv_clip is not None:
            q, k, v = (jnp.clip(item, -self.qkv_clip, self.qkv_clip) for item in (q, k, v))
        if self.qk_norm is not None:
            q, k = self._normed(self.q_norm, q), self._normed(self.k_norm, k)
        if rotation is not None:
            q, k = (rotate(item, *rotation, self.rotary_interleaved) for item in (q, k))
        return q, k, v

    def read(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None = None,
        cache: LayerCache | None = None,
        cache_index: jax.Array | int = 0,
        alibi: tuple[np.ndarray, jax.Array] | None = None,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """What `project` gave -> (what the heads read [B, T, H, C], the updated cache); it has no parameters."""
        dropout = (self.dropout, self.make_rng("dropout")) if self.dropout and self.has_rng("dropout") else None
        q = constrain(q, "batch", "length", "act_heads", None)
        k = constrain(k.swapaxes(1, 2), "batch", "act_kv_heads", None, None)
        v = constrain(v.swapaxes(1, 2), "batch", "act_kv_heads", None, None)
        if cache is not None:
            at = (0, 0, cache_index, 0)
            cache = tuple(
                jax.lax.dynamic_update_slice(old, new.astype(old.dtype), at)
                for old, new in zip(cache, (k, v), strict=True)
            )
            if mask is None or mask.shape[-1] != k.shape[2]:
                k, v = (item.astype(self.dtype) for item in cache)
        return attend(q, k, v, mask, self.scale, self.cap, alibi, bias, dropout), cache

    def keys(self, source: jax.Array) -> LayerCache:
        """Keys and values of `source` [B, S, D] as `cross` takes them, made once for every step that reads them."""
        k, v = self.k(source), self.v(source)
        if self.qkv_clip is not None:
            k, v = (jnp.clip(item, -self.qkv_clip, self.qkv_clip) for item in (k, v))
        if self.qk_norm is not None:
            k = self._normed(self.k_norm, k)
        return tuple(constrain(item.swapaxes(1, 2), "batch", "act_kv_heads", None, None) for item in (k, v))

    def cross(self, x: jax.Array, keys: LayerCache, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] attends to `keys` of S places -> [B, T, D]; mask as in `attend`."""
        q = self.q(x)
        if self.qkv_clip is not None:
            q = jnp.clip(q, -self.qkv_clip, self.qkv_clip)
        if self.qk_norm is not None:
            q = self._normed(self.q_norm, q)
        q = constrain(q, "batch", "length", "act_heads", None)
        return self.out(attend(q, *keys, mask, self.scale, self.cap))

    def _normed(self, norm: nn.Module, heads: jax.Array) -> jax.Array:
        """[B, T, H, C] normalised over C, or over H * C."""
        return norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape) if self.joint_qk_norm else norm(heads)

    def out(self, heads: jax.Array) -> jax.Array:
        """What the heads read, [B, T, H, C] -> [B, T, D]."""
        if self.inner_norm is not None:
            heads = self.sub_norm(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
        return self.o(heads)
