"""Adapter prompts: learned prompts that the top layers attend to beside the text, behind gates that start at zero.

Zhang et al., 2023 ("LLaMA-Adapter"). Media are read through them: what an image was projected to is added to every
prompt of its row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.nn.block import BlockConfig
from mmjax.nn.stack import run_stack, side_by_side

GATES = ("head", "layer")


@dataclasses.dataclass(frozen=True)
class AdapterPromptsConfig:
    """How many prompts, and where.

    Attributes:
        num_prompts: P, of a layer.
        layers: how many layers have prompts, the last ones.
        gate: whether a layer has a gate a head ("head") or one for all ("layer").
        squash: whether gates go through tanh, as in the paper's code; peft's do not.
    """

    num_prompts: int
    layers: int
    gate: str = "head"
    squash: bool = True

    kind: ClassVar[str] = "adapter_prompts"

    def __post_init__(self):
        check_choice("fusion.gate", self.gate, GATES)
        for name in ("num_prompts", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError where the decoder cannot have these prompts."""
        if self.layers > num_layers:
            raise ConfigError(f"fusion.layers is {self.layers}, backbone.num_layers {num_layers}")

    def memory_width(self, block: BlockConfig) -> int:
        """Channels of the media token that is added to the prompts."""
        return block.width


class AdapterPrompts(nn.Module):
    """The prompts of a decoder and how its top layers read them.

    Parameters: blocks {prompts [layers, P, D], gate [layers, H] or [layers, 1]}. A prompt's keys and values are made
    by the layer's own maps, without a norm and without a position; its softmax is its own.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: AdapterPromptsConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config

        def init(rng):
            prompts = jax.random.normal(rng, (c.layers, c.num_prompts, self.block.width))
            gate = jnp.zeros((c.layers, self.block.num_heads if c.gate == "head" else 1))
            return {
                "prompts": nn.LogicallyPartitioned(prompts, ("layers", None, "embed")),
                "gate": nn.LogicallyPartitioned(gate, ("layers", "feature")),
            }

        self.blocks = self.param("blocks", init) if self.is_initializing() else self.get_variable("params", "blocks")

    def keys(self, memory: jax.Array) -> tuple[jax.Array]:
        """What decoding keeps of a memory: itself."""
        return (memory,)

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
        """Runs the decoder's blocks, the top ones with prompts.

        Args:
            apply: as of `run_stack`, with a keyword `prompts`, see `Attention`.
            blocks, x, cache: as `run_stack`.
            memory: [B, 1, D], what is added to each row's prompts, or what `keys` made of it; None: nothing is.
            memory_mask: bool [B, T, 1], which rows have it: those where a token sees it.
            is_media: not read.

        Returns:
            x, and the cache in the form it came in.

        Raises:
            ValueError: more than one media token a row.
        """
        first = self.num_layers - self.config.layers
        memory = memory[0] if isinstance(memory, tuple) else memory
        if memory is not None and memory.shape[1] != 1:
            raise ValueError(f"adapter prompts are added one media token a row, got {memory.shape[1]}")
        if memory is not None and memory_mask is not None:
            memory = jnp.where(jnp.any(memory_mask, axis=1)[..., None], memory, 0)

        def prompted(layer, x, layer_cache):
            prompts, gate = (layer["own"][name].astype(self.dtype) for name in ("prompts", "gate"))
            prompts = prompts[None] if memory is None else prompts + memory.astype(self.dtype)
            gate = jnp.tanh(gate) if self.config.squash else gate
            return apply(layer["block"], x, layer_cache, prompts=(prompts, gate))

        unrolled = isinstance(blocks, tuple)

        def top(stack):
            return stack[first:] if unrolled and stack is not None else jax.tree.map(lambda leaf: leaf[first:], stack)

        x, low = run_stack(apply, blocks, x, cache, self.remat, 0, first)
        layers = side_by_side(block=top(blocks), own=self.blocks)
        x, high = run_stack(prompted, layers, x, top(cache), self.remat)
        if unrolled:
            return x, None if cache is None else (*low, *high)
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), low, high)
