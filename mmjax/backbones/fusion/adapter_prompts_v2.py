"""LLaMA-Adapter V2: media read in the first layers, prompts in the last, a bias and a scale on every linear map.

Gao et al., 2023 ("LLaMA-Adapter V2"). Media and prompts do not meet in one layer, so that what is learned from images
and what is learned from instructions do not disturb each other. All gates start at zero, all biases at zero and all
scales at one: a fresh model is its text model. The norms, which the paper trains too, are the text model's own leaves.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.backbones.fusion.adapter_prompts import GATES
from mmjax.config import ConfigError, check_choice
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.stack import init_stack, run_stack, side_by_side


@dataclasses.dataclass(frozen=True)
class AdapterPromptsV2Config:
    """How many prompts and where, and which layers read media.

    Attributes:
        num_prompts: P, of a layer.
        layers: how many layers have prompts, the last ones.
        media_layers: how many layers read media, the first ones.
        gate: whether a layer has a gate a head ("head") or one for all ("layer"), squashed by tanh.
    """

    num_prompts: int
    layers: int
    media_layers: int
    gate: str = "head"

    kind: ClassVar[str] = "adapter_prompts_v2"

    def __post_init__(self):
        check_choice("fusion.gate", self.gate, GATES)
        for name in ("num_prompts", "layers", "media_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError where the decoder cannot have these prompts, maps or layers."""
        if self.layers + self.media_layers > num_layers:
            raise ConfigError(
                f"fusion.layers {self.layers} and media_layers {self.media_layers} are more than backbone.num_layers "
                f"{num_layers}"
            )
        if block.moe is not None:
            raise ConfigError(f"fusion of kind {self.kind!r} and backbone.moe: experts have no biases and scales")

    def memory_width(self, block: BlockConfig) -> int:
        """Channels of the media tokens that the first layers read."""
        return block.width


class AdapterPromptsV2(nn.Module):
    """What stands beside the blocks of a decoder.

    Parameters: blocks {attn, mlp}, each linear map {tuned_bias, tuned_scale} with leaves [L, ...]; early/blocks
    {gate [media_layers, H or 1]}; late/blocks {prompts [layers, P, D], gate [layers, H or 1]}. Keys and values of
    media and of prompts are made by the layer's own maps, without a norm and without a position; their softmax is
    their own.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: AdapterPromptsV2Config
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c, heads = self.config, self.block.num_heads if self.config.gate == "head" else 1

        def tuned(rng):
            block = Block(dataclasses.replace(self.block, lora=None), self.dtype, parent=None)
            made = init_stack(block, self.num_layers, jnp.zeros((1, 1, self.block.width), self.dtype))(rng)
            return {name: _tuned(made[name]) for name in ("attn", "mlp")}

        def gate(layers):
            return nn.LogicallyPartitioned(jnp.zeros((layers, heads)), ("layers", "feature"))

        def late(rng):
            prompts = jax.random.normal(rng, (c.layers, c.num_prompts, self.block.width))
            prompts = nn.LogicallyPartitioned(prompts, ("layers", None, "embed"))
            return {"blocks": {"prompts": prompts, "gate": gate(c.layers)}}

        def leaf(name, init):
            return self.param(name, init) if self.is_initializing() else self.get_variable("params", name)

        self.blocks = leaf("blocks", tuned)
        self.early = leaf("early", lambda rng: {"blocks": {"gate": gate(c.media_layers)}})
        self.late = leaf("late", late)

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
        """Runs the decoder's blocks.

        Args:
            apply: as of `run_stack`, with keywords `beside` and `prompts`: further parameters of a layer, and what its
                attention reads besides.
            blocks, x, cache: as `run_stack`.
            memory: media tokens [B, N, D], or what `keys` made of them; None where there are none.
            memory_mask: bool, broadcastable to [B, T, N].
            is_media: not read.

        Returns:
            x, and the cache in the form it came in.
        """
        memory = memory[0] if isinstance(memory, tuple) else memory

        def run(layer, x, layer_cache):
            own, prompts = layer.get("own"), None
            if own is not None and "prompts" in own:
                prompts = own["prompts"][None].astype(self.dtype), jnp.tanh(own["gate"].astype(self.dtype))
            elif own is not None and memory is not None:
                seen = jnp.ones((1, 1, memory.shape[1]), bool) if memory_mask is None else memory_mask
                prompts = memory.astype(self.dtype), jnp.tanh(own["gate"].astype(self.dtype)), seen
            return apply(layer["block"], x, layer_cache, beside=layer["tuned"], prompts=prompts)

        unrolled, given = isinstance(blocks, tuple), []
        last = self.num_layers - self.config.layers
        spans = (0, self.config.media_layers, self.early), (self.config.media_layers, last, None)
        for start, stop, own in (*spans, (last, self.num_layers, self.late)):
            if start == stop:
                continue
            part = lambda stack: _part(stack, start, stop, unrolled)  # noqa: B023, E731
            beside = {} if own is None else {"own": own["blocks"]}
            layers = side_by_side(block=part(blocks), tuned=part(self.blocks), **beside)
            x, new = run_stack(run, layers, x, part(cache), self.remat)
            given.append(new)
        if unrolled:
            return x, None if cache is None else tuple(layer for span in given for layer in span)
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *given)


def _part(stack: Any, start: int, stop: int, unrolled: bool) -> Any:
    """Layers `start` to `stop` of a stack or a cache in either form."""
    if unrolled:
        return None if stack is None else stack[start:stop]
    return jax.tree.map(lambda leaf: leaf[start:stop], stack)


def _tuned(tree: dict[str, Any]) -> dict[str, Any]:
    """The biases and scales of the linear maps of fresh boxed blocks."""
    out = {}
    for name, child in tree.items():
        if "kernel" in child:
            box, inputs = child["kernel"], 2 if name == "o" else 1
            names = ("layers", *box.names[1 + inputs :])
            shape = (box.value.shape[0], *box.value.shape[1 + inputs :])
            leaves = {"tuned_bias": jnp.zeros(shape), "tuned_scale": jnp.ones(shape)}
            out[name] = {key: nn.LogicallyPartitioned(leaf, names) for key, leaf in leaves.items()}
    return out
