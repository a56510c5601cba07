"""The visual expert: media tokens have maps of their own in every block, and attend together with the text.

Wang et al., 2023 ("CogVLM").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.distributed.rules import constrain
from mmjax.nn.attention import LayerCache
from mmjax.nn.block import BlockConfig, attention, mlp
from mmjax.nn.stack import init_stack, run_stack, side_by_side


@dataclasses.dataclass(frozen=True)
class VisualExpertConfig:
    """Its sizes are those of the text's maps; there is nothing to choose."""

    kind: ClassVar[str] = "visual_expert"
    # Media tokens that stand in the text are treated otherwise than text.
    of_media: ClassVar[bool] = True

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError for blocks in which it is not defined."""
        for name in ("parallel", "post_norms", "moe"):
            if getattr(block, name):
                raise ConfigError(f"fusion of kind {self.kind!r} and backbone.{name}: no published model has both")


def expert_of_text(backbone: dict[str, Any]) -> dict[str, Any]:
    """A backbone's params -> those of an expert that starts as a copy of the text's maps, as CogVLM's does.

    The model then gives what the text model gives, bit for bit. Put it at backbone/fusion.
    """

    def plain(tree):
        if not isinstance(tree, dict):
            return tree
        return {name: plain(child) for name, child in tree.items() if name not in ("lora_a", "lora_b")}

    return {"blocks": {name: plain(backbone["blocks"][name]) for name in ("attn", "mlp")}}


class VisualExpertBlock(nn.Module):
    """A pre-norm block with two sets of maps: attn and mlp for text, expert_attn and expert_mlp for media.

    Shapes do not hang on which tokens are media: both sets run over all tokens and one is taken, which costs the
    products of the maps twice (those of attention itself once). The norms are shared.
    """

    config: BlockConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        own = dataclasses.replace(self.config, lora=None)
        self.attn, self.expert_attn = attention(self.config, self.dtype), attention(own, self.dtype)
        self.mlp, self.expert_mlp = mlp(self.config, self.dtype), mlp(own, self.dtype)
        self.attn_norm, self.mlp_norm = (self.config.norms.module(self.dtype) for _ in range(2))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        cache: LayerCache | None = None,
        cache_index: jax.Array | int = 0,
        alibi: Any = None,
        router_logits: bool = False,
        is_media: jax.Array | None = None,
        between: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> ([B, T, D], cache).

        `is_media` is bool [B, T], None where all is text; `between` is applied to x between the halves; the other
        arguments are as in `Block`.
        """
        if self.is_initializing():
            is_media = jnp.zeros(x.shape[:2], bool)

        def each(maps, experts, call):
            text = call(maps)
            if is_media is None:
                return text
            pick = lambda a, b: jnp.where(is_media.reshape(*is_media.shape, *[1] * (a.ndim - 2)), b, a)  # noqa: E731
            return jax.tree.map(pick, text, call(experts))

        before = self.attn_norm(x)
        maps = each(self.attn, self.expert_attn, lambda attn: attn.project(before, rotation))
        heads, cache = self.attn.read(*maps, mask, cache, cache_index, alibi)
        h = each(self.attn, self.expert_attn, lambda attn: attn.out(heads))
        x = constrain(x + h, "batch", "length", "act_embed")
        x = x if between is None else between(x)
        before = self.mlp_norm(x)
        h = each(self.mlp, self.expert_mlp, lambda mlp: mlp(before))
        return constrain(x + h, "batch", "length", "act_embed"), cache


class VisualExpert(nn.Module):
    """The experts of all blocks. Parameters: blocks {attn, mlp}, each as the text's.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: VisualExpertConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.layer = VisualExpertBlock(self.block, self.dtype, parent=None)

        def init(rng):
            made = init_stack(self.layer, self.num_layers, jnp.zeros((1, 1, self.block.width), self.dtype))(rng)
            return {"attn": made["expert_attn"], "mlp": made["expert_mlp"]}

        self.blocks = self.param("blocks", init) if self.is_initializing() else self.get_variable("params", "blocks")

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
            memory, memory_mask: not read: the media stand in the text.
            is_media: bool [B, T], which tokens go through the expert; None: none does, and nothing is spent on it.

        Returns:
            x, and the cache in the form it came in.
        """
        if is_media is None:
            return run_stack(apply, blocks, x, cache, self.remat)

        def run(layer, x, layer_cache):
            beside = {f"expert_{name}": layer["own"][name] for name in ("attn", "mlp")}
            return apply(layer["text"], x, layer_cache, block=self.layer, beside=beside, is_media=is_media)

        return run_stack(run, side_by_side(text=blocks, own=self.blocks), x, cache, self.remat)
