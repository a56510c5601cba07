"""The pre-norm transformer block that encoders and decoders share, its halves in a row or side by side."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, LayerCache
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.moe import Mixture, MixtureConfig
from mmjax.nn.norms import NORMS, NormConfig

# Of norms that every head has for itself, whatever the others' is: no config.json says it.
HEAD_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes and options of one block.

    Attributes:
        width, mlp_width, num_heads, num_kv_heads, head_dim: D, F, H, K, C.
        activation, gated: of the MLP.
        norm, norm_eps, norm_offset, norm_bias: see `NormConfig`.
        qkv_bias, out_bias, mlp_bias: biases on q, k, v; on o; on the MLP's maps.
        lora: low-rank adapters.
        qk_norm, joint_qk_norm: whether every head of q and of k is normalised; or all heads together.
        head_norms: with qk_norm, whether it is a layer norm whose scale and bias each head has for itself (Chameleon).
        post_norms: whether what each half gives is normalised before it is added (Gemma 2).
        parallel: whether both halves read the block's input (GPT-J), not the MLP what attention added to it.
        shared_norm: whether parallel halves read it through one norm.
        qkv_clip, rotary_interleaved, attention_scale, attention_cap: see `Attention`.
        sub_norm: whether there is a norm inside attention and MLP too, before their last maps (Magneto).
        moe: experts in place of the MLP, whose `mlp_width` and `mlp_bias` then mean nothing.
    """

    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    activation: str
    norm: str
    norm_eps: float
    gated: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    lora: LoRAConfig | None = None
    norm_offset: float = 0.0
    norm_bias: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    parallel: bool = False
    shared_norm: bool = False
    qkv_clip: float | None = None
    rotary_interleaved: bool = False
    attention_scale: float | None = None
    attention_cap: float | None = None
    sub_norm: bool = False
    joint_qk_norm: bool = False
    head_norms: bool = False
    moe: MixtureConfig | None = None

    def __post_init__(self):
        check_choice("norm", self.norm, tuple(NORMS))
        check_activation("activation", self.activation)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_norms and (self.joint_qk_norm or not self.qk_norm):
            raise ConfigError("head_norms needs qk_norm, and not joint_qk_norm")
        if self.shared_norm and not self.parallel:
            raise ConfigError("shared_norm needs parallel: otherwise each half has an input of its own")
        if self.post_norms and self.parallel:
            raise ConfigError("post_norms and parallel: no published block has both, so it is not defined here")
        if self.moe is not None and self.mlp_bias:
            raise ConfigError("moe and mlp_bias: experts have no biases")
        if self.moe is not None and self.sub_norm:
            raise ConfigError("moe and sub_norm: experts have no norms")
        if self.moe is not None and self.lora is not None and set(self.lora.targets) & {"gate", "up", "down"}:
            raise ConfigError(
                f"lora.targets {list(self.lora.targets)} with moe: experts have no low-rank paths; "
                "leave out gate, up and down"
            )

    @property
    def norms(self) -> NormConfig:
        """The config of every norm in the block."""
        return NormConfig(self.norm, self.norm_eps, self.norm_offset, self.norm_bias)

    @property
    def qk_norms(self) -> NormConfig | None:
        """The config of the norms of q and k, if there are any."""
        if not self.qk_norm:
            return None
        return NormConfig("layer", HEAD_NORM_EPS, per_head=True) if self.head_norms else self.norms


def attention(c: BlockConfig, dtype: jnp.dtype, name: str | None = None) -> Attention:
    """The attention of a block."""
    return Attention(
        c.width,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.qkv_bias,
        c.out_bias,
        c.lora,
        dtype,
        c.qk_norms,
        c.qkv_clip,
        c.rotary_interleaved,
        c.attention_scale,
        c.attention_cap,
        c.norms if c.sub_norm else None,
        c.joint_qk_norm,
        name=name,
    )


def mlp(c: BlockConfig, dtype: jnp.dtype, name: str | None = None) -> MLP:
    """The MLP of a block without experts."""
    inner = c.norms if c.sub_norm else None
    return MLP(c.width, c.mlp_width, c.activation, c.gated, c.mlp_bias, c.lora, dtype, inner, name=name)


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)); or, parallel, x + attn(norm(x)) + mlp(norm(x))."""

    config: BlockConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        cache: LayerCache | None = None,
        cache_index: jax.Array | int = 0,
        alibi: tuple[np.ndarray, jax.Array] | None = None,
        router_logits: bool = False,
        prompts: tuple[jax.Array, ...] | None = None,
        inside: Mapping[str, Callable[[jax.Array], jax.Array]] | None = None,
    ) -> tuple[jax.Array, Any]:
        """x [B, T, D] -> ([B, T, D], cache); the other arguments as in `Attention`.

        `inside` are functions of a fusion, by their place: "attention" is applied to what attention reads, "between" to
        x between the halves, "mlp" to what the MLP reads, in the MLP's place; that one gives its router's logits, or
        None, besides.

        With `router_logits` (of the block's experts or a fusion's), a pair stands in the cache's place: the cache,
        and the router's logits float32 [B, T, E].
        """
        c = self.config
        attn = attention(c, self.dtype, "attn")
        if c.moe is None:
            plain = mlp(c, self.dtype, "mlp")
            feed = lambda x: (plain(x), None)  # noqa: E731
        else:
            feed = Mixture(c.width, c.moe, c.activation, c.gated, self.dtype, name="mlp")

        def norm(name, x):
            return c.norms.module(self.dtype, name)(x)

        inside = inside or {}
        as_it_is = lambda x: x  # noqa: E731
        if "mlp" in inside:
            feed = inside["mlp"]
        before = inside.get("attention", as_it_is)(norm("attn_norm", x))
        h, cache = attn(before, mask, rotation, cache, cache_index, alibi=alibi, prompts=prompts)
        if c.post_norms:
            h = norm("attn_post_norm", h)
        if c.parallel:
            fed, logits = feed(before if c.shared_norm else norm("mlp_norm", x))
            x = constrain(x + (h + fed), "batch", "length", "act_embed")
            return x, (cache, logits) if router_logits else cache
        x = inside.get("between", as_it_is)(constrain(x + h, "batch", "length", "act_embed"))
        h, logits = feed(norm("mlp_norm", x))
        if c.post_norms:
            h = norm("mlp_post_norm", h)
        x = constrain(x + h, "batch", "length", "act_embed")
        return x, (cache, logits) if router_logits else cache
