"""A branch of high resolution: every layer reads features of a large image by a narrow cross-attention.

Hong et al., 2023 ("CogAgent"). The image at low resolution stands in the text and has maps of its own, as in CogVLM;
the same image at high resolution goes through a small tower, and its many features are read between the halves of
every block at a fraction of the text's width, so that they cost little.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones.fusion.visual_expert import VisualExpertBlock, VisualExpertConfig
from mmjax.config import ConfigError
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import Attention, LayerCache
from mmjax.nn.block import BlockConfig
from mmjax.nn.stack import init_stack, run_stack, side_by_side


@dataclasses.dataclass(frozen=True)
class HighResolutionConfig:
    """Sizes of the cross-attention.

    Attributes:
        media_width: channels of a feature of high resolution.
        num_heads, head_dim: H and C.
    """

    media_width: int
    num_heads: int = 32
    head_dim: int = 32

    kind: ClassVar[str] = "high_resolution"
    # Media tokens that stand in the text are treated otherwise than text.
    of_media: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("media_width", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError for blocks in which it is not defined."""
        VisualExpertConfig().check(block, num_layers)

    def memory_width(self, block: BlockConfig) -> int:
        """Channels of what the layers read."""
        return self.media_width


class NarrowCross(nn.Module):
    """x + cross(norm(x), features). Parameters: norm, attn {q, k, v, o}; k and v are [media width, H, C]."""

    config: HighResolutionConfig
    block: BlockConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        self.attn = Attention(self.block.width, c.num_heads, c.num_heads, c.head_dim, dtype=self.dtype)
        self.norm = self.block.norms.module(self.dtype)

    def keys(self, memory: jax.Array) -> LayerCache:
        """Keys and values for features [B, N, media width]."""
        return self.attn.keys(memory.astype(self.dtype))

    def __call__(self, x: jax.Array, keys: LayerCache | None = None, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] -> [B, T, D]; mask bool, broadcastable to [B, T, N]: a token that sees none stays as it is."""
        if self.is_initializing():
            keys = self.keys(jnp.zeros((1, 1, self.config.media_width)))
        h = self.attn.cross(self.norm(x), keys, mask)
        if mask is not None:
            h = jnp.where(jnp.any(mask, axis=-1)[..., None], h, 0)
        return constrain(x + h, "batch", "length", "act_embed")


class HighResolution(nn.Module):
    """The experts and cross-attentions of all blocks.

    Parameters: blocks {attn, mlp, cross}, the first two as the text's.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: HighResolutionConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.layer = VisualExpertBlock(self.block, self.dtype, parent=None)
        self.cross = NarrowCross(self.config, self.block, self.dtype, parent=None)

        def init(rng):
            dummy = jnp.zeros((1, 1, self.block.width), self.dtype)
            first, second = jax.random.split(rng)
            made = init_stack(self.layer, self.num_layers, dummy)(first)
            cross = init_stack(self.cross, self.num_layers, dummy)(second)
            return {"attn": made["expert_attn"], "mlp": made["expert_mlp"], "cross": cross}

        self.blocks = self.param("blocks", init) if self.is_initializing() else self.get_variable("params", "blocks")

    def keys(self, memory: jax.Array) -> Any:
        """Keys and values of every layer, as `Decoder.cross_keys`."""
        one = lambda layer: self.cross.apply({"params": layer["cross"]}, memory, method="keys")
        return tuple(map(one, self.blocks)) if isinstance(self.blocks, tuple) else jax.lax.map(one, self.blocks)

    def __call__(
        self,
        apply: Callable[..., tuple[jax.Array, Any]],
        blocks: Any,
        x: jax.Array,
        cache: Any = None,
        memory: Any = None,
        memory_mask: jax.Array | None = None,
        is_media: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the decoder's blocks.

        Args:
            apply: as of `run_stack`, with keywords `block` and `beside`: the module that runs a layer, and further
                parameters for it.
            blocks, x, cache: as `run_stack`.
            memory: features of high resolution [B, N, media width], or what `keys` made of them; None where there are
                none, and nothing is spent on them.
            memory_mask: bool, broadcastable to [B, T, N].
            is_media: bool [B, T], which tokens go through the expert; None: none does.

        Returns:
            x, and the cache in the form it came in.
        """
        made = isinstance(memory, tuple)

        def run(layer, x, layer_cache):
            own, variables = layer["own"], {"params": layer["own"]["cross"]}

            def between(x):
                keys = layer["keys"] if made else self.cross.apply(variables, memory, method="keys")
                return self.cross.apply(variables, x, keys, memory_mask)

            beside = {f"expert_{name}": own[name] for name in ("attn", "mlp")}
            options = {"is_media": is_media, "between": None if memory is None else between}
            return apply(layer["text"], x, layer_cache, block=self.layer, beside=beside, **options)

        layers = side_by_side(text=blocks, own=self.blocks, **({"keys": memory} if made else {}))
        return run_stack(run, layers, x, cache, self.remat)
