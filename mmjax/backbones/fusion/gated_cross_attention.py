"""Gated cross-attention: layers between the blocks of a text model, through which its tokens read media.

Alayrac et al., 2022 ("Flamingo"); by options as in IDEFICS (Laurençon et al., 2023, "OBELICS").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, LayerCache
from mmjax.nn.block import BlockConfig
from mmjax.nn.mlp import MLP
from mmjax.nn.stack import init_stack, run_groups, side_by_side

GATES = ("scalar", "vector")


@dataclasses.dataclass(frozen=True)
class GatedCrossAttentionConfig:
    """What the layers have of their own; norms and MLP are those of the blocks, without biases.

    Attributes:
        media_width: channels of a media token.
        every: a layer stands before the first of every `every` blocks.
        qk_norm: whether every head of queries and keys is normalised.
        gate: whether a gate is one number ("scalar") or one a channel ("vector").
        num_heads, head_dim: H and C; None for those of the blocks, with their key/value heads.
    """

    media_width: int
    every: int = 1
    qk_norm: bool = False
    gate: str = "scalar"
    num_heads: int | None = None
    head_dim: int | None = None

    kind: ClassVar[str] = "gated_cross_attention"

    def __post_init__(self):
        check_choice("fusion.gate", self.gate, GATES)
        for name in ("media_width", "every", "num_heads", "head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError where the decoder cannot have these layers."""
        if num_layers % self.every:
            raise ConfigError(f"fusion.every {self.every} does not divide backbone.num_layers {num_layers}")

    def memory_width(self, block: BlockConfig) -> int:
        """Channels of what the layers read."""
        return self.media_width

    def heads(self, block: BlockConfig) -> tuple[int, int, int]:
        """H, K and C of the layers."""
        grouped = self.num_heads or block.num_heads, self.num_heads or block.num_kv_heads
        return *grouped, self.head_dim or block.head_dim


class GatedCrossBlock(nn.Module):
    """x + tanh(a) cross(norm(x), media), then x + tanh(b) mlp(norm(x)); both gates start at zero: x as it came.

    Parameters: attn_norm, attn {q, k, v, o}, attn_gate, mlp_norm, mlp, mlp_gate. k and v are [media width, K, C].
    """

    config: GatedCrossAttentionConfig
    block: BlockConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c, norms = self.block, self.block.norms
        self.attn = Attention(
            c.width,
            *self.config.heads(c),
            dtype=self.dtype,
            qk_norm=norms if self.config.qk_norm else None,
            scale=c.attention_scale,
        )
        self.mlp = MLP(c.width, c.mlp_width, c.activation, c.gated, dtype=self.dtype)
        self.attn_norm, self.mlp_norm = norms.module(self.dtype), norms.module(self.dtype)
        shape = (1,) if self.config.gate == "scalar" else (c.width,)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("feature",))
        self.attn_gate, self.mlp_gate = (self.param(name, init, shape) for name in ("attn_gate", "mlp_gate"))

    def keys(self, memory: jax.Array) -> LayerCache:
        """Keys and values for media tokens [B, N, media width]."""
        return self.attn.keys(memory.astype(self.dtype))

    def __call__(self, x: jax.Array, keys: LayerCache | None = None, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] -> [B, T, D].

        Args:
            keys: as `keys` gives them; None where there are no media.
            mask: bool, broadcastable to [B, T, N]; a token that sees none gets zero from the attention.
        """
        if self.is_initializing():
            keys = self.keys(jnp.zeros((1, 1, self.config.media_width)))
        if keys is not None:
            h = self.attn.cross(self.attn_norm(x), keys, mask)
            if mask is not None:
                h = jnp.where(jnp.any(mask, axis=-1)[..., None], h, 0)
            x = self._add(x, self.attn_gate, h)
        return self._add(x, self.mlp_gate, self.mlp(self.mlp_norm(x)))

    def _add(self, x: jax.Array, gate: jax.Array, h: jax.Array) -> jax.Array:
        return constrain(x + jnp.tanh(gate.astype(self.dtype)) * h, "batch", "length", "act_embed")


class GatedCrossAttention(nn.Module):
    """All layers of a decoder that read media, and how they stand between its blocks. Parameters: blocks [G, ...].

    Attributes:
        config: of the layers.
        block: of the decoder's blocks.
        num_layers: L, of the decoder; G is L / config.every.
        dtype: compute dtype.
        remat: rematerialisation policy, see `mmjax.nn.stack`.
    """

    config: GatedCrossAttentionConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.layer = GatedCrossBlock(self.config, self.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, self.block.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.layer, self.num_layers // self.config.every, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def keys(self, memory: jax.Array) -> Any:
        """Keys and values of every layer, as `Decoder.cross_keys`."""
        one = lambda layer: self.layer.apply({"params": layer}, memory, method="keys")
        return tuple(map(one, self.blocks)) if isinstance(self.blocks, tuple) else jax.lax.map(one, self.blocks)

    def __call__(
        self,
        apply: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
        blocks: Any,
        x: jax.Array,
        cache: Any = None,
        memory: Any = None,
        memory_mask: jax.Array | None = None,
        is_media: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the decoder's blocks with these layers between them.

        Args:
            apply, blocks, x, cache: as `run_stack`.
            memory: media tokens [B, N, media width], or what `keys` made of them; None where there are none.
            memory_mask: bool, broadcastable to [B, T, N].
            is_media: not read: media stand outside the text.

        Returns:
            x, and the cache in the form it came in.
        """
        made = isinstance(memory, tuple)

        def read(layer, x):
            variables = {"params": layer["params"]}
            keys = layer["keys"] if made else memory
            if keys is not None and not made:
                keys = self.layer.apply(variables, memory, method="keys")
            return self.layer.apply(variables, x, keys, memory_mask)

        layers = side_by_side(params=self.blocks, **({"keys": memory} if made else {}))
        return run_groups(read, layers, apply, blocks, x, cache, self.remat)
