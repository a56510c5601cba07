"""The pre-norm transformer block that encoders and decoders share."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, LayerCache
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import LayerNorm, RMSNorm

NORMS = {"rms": RMSNorm, "layer": LayerNorm}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes and options of one block: D, F, H, K, C, activation, norm and biases."""

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

    def __post_init__(self):
        check_choice("norm", self.norm, tuple(NORMS))
        check_activation("activation", self.activation)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

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
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> ([B, T, D], cache); the other arguments as in `Attention`."""
        c = self.config
        norm = NORMS[c.norm]
        attn = Attention(
            c.width,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            c.qkv_bias,
            c.out_bias,
            c.lora,
            self.dtype,
            name="attn",
        )
        mlp = MLP(c.width, c.mlp_width, c.activation, c.gated, c.mlp_bias, c.lora, self.dtype, name="mlp")
        h, cache = attn(norm(c.norm_eps, self.dtype, name="attn_norm")(x), mask, rotation, cache, cache_index)
        x = constrain(x + h, "batch", "length", "act_embed")
        x = x + mlp(norm(c.norm_eps, self.dtype, name="mlp_norm")(x))
        return constrain(x, "batch", "length", "act_embed"), cache
