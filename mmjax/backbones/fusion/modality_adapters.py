"""Mixture-of-modality adapters: two bottlenecks before every attention, weighed by what kind of input a row is.

Luo et al., 2023 ("Cheap and Quick", LaVIN). A learned token says whether a row has media or is text alone; in every
layer a router reads it and weighs the two paths, so that one model answers both kinds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.nn.block import BlockConfig
from mmjax.nn.linear import fan_in_normal
from mmjax.nn.stack import run_stack, side_by_side


@dataclasses.dataclass(frozen=True)
class ModalityAdaptersConfig:
    """Sizes of the adapters.

    Attributes:
        hidden: channels of the bottleneck.
        temperature: the router's logits are divided by it.
        scale: factor of what the adapters add.
    """

    hidden: int = 8
    temperature: float = 10.0
    scale: float = 1.0

    kind: ClassVar[str] = "modality_adapters"
    # It asks which media a row has, see `MultimodalLM.inside`.
    of_rows: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("hidden", "temperature", "scale"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"fusion.{name} must be positive, got {getattr(self, name)}")

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Adapters stand before any block's attention."""


class ModalityAdapters(nn.Module):
    """The adapters of all blocks: h + scale * sum over the two paths of weight * up(down(h)), of normed h.

    Parameters: tokens [2, D], of text alone and of text with media; blocks {down {kernel [L, D, hidden], bias}, up
    {kernel [L, 2, hidden, D], bias [L, 2, D]}, router {kernel [L, D, 2], bias [L, 2]}}. `up` starts at zero.

    Attributes:
        config, block, num_layers, dtype, remat: as `GatedCrossAttention`.
    """

    config: ModalityAdaptersConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        layers, width, hidden = self.num_layers, self.block.width, self.config.hidden

        def init(rng):
            first, second = jax.random.split(rng)

            def linear(kernel, bias, axes, bias_axes):
                leaves = {"kernel": (kernel, axes), "bias": (jnp.zeros((layers, *bias)), bias_axes)}
                return {name: nn.LogicallyPartitioned(leaf, ("layers", *on)) for name, (leaf, on) in leaves.items()}

            down, router = (
                fan_in_normal((width,))(rng, (layers, width, outputs))
                for rng, outputs in ((first, hidden), (second, 2))
            )
            up = jnp.zeros((layers, 2, hidden, width))
            return {
                "down": linear(down, (hidden,), ("embed", "rank"), ("rank",)),
                "up": linear(up, (2, width), (None, "rank", "embed"), (None, "embed")),
                "router": linear(router, (2,), ("embed", "feature"), ("feature",)),
            }

        tokens = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
        self.tokens = self.param("tokens", tokens, (2, width))
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
        """Runs the decoder's blocks, each behind its adapters.

        Args:
            apply: as of `run_stack`, with a keyword `inside`, see `Block`.
            blocks, x, cache: as `run_stack`.
            memory: [B, 1, ports], above 0 where a row has media of a port, or what `keys` made of it; None: no row has.
            memory_mask, is_media: not read.

        Returns:
            x, and the cache in the form it came in.
        """
        memory = memory[0] if isinstance(memory, tuple) else memory
        if memory is None:
            memory = jnp.zeros((x.shape[0], 1, 1))
        token = self.tokens[jnp.any(memory > 0, axis=(1, 2)).astype(jnp.int32)]

        def run(layer, x, layer_cache):
            own = layer["own"]
            logits = token.astype(jnp.float32) @ own["router"]["kernel"] + own["router"]["bias"]
            weights = jax.nn.softmax(logits / self.config.temperature, axis=-1).astype(self.dtype)
            down, up = ({name: leaf.astype(self.dtype) for name, leaf in own[part].items()} for part in ("down", "up"))

            def adapted(h):
                low = h @ down["kernel"] + down["bias"]
                more = jnp.einsum("btr,erd,be->btd", low, up["kernel"], weights) + (weights @ up["bias"])[:, None]
                return h + self.config.scale * more

            return apply(layer["text"], x, layer_cache, inside={"attention": adapted})

        return run_stack(run, side_by_side(text=blocks, own=self.blocks), x, cache, self.remat)
