"""DeepStack: media tokens of several layers of a tower, added one by one behind the first layers of a text model.

Meng et al., 2024 ("DeepStack"); Bai et al., 2025 ("Qwen3-VL").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.nn.block import BlockConfig
from mmjax.nn.stack import run_stack, side_by_side


@dataclasses.dataclass(frozen=True)
class DeepStackConfig:
    """What is added.

    Attributes:
        layers: K, how many layers, from the first on, have media added to what they give.
    """

    layers: int

    kind: ClassVar[str] = "deepstack"

    def check(self, block: BlockConfig, num_layers: int) -> None:
        """Raises ConfigError where the decoder has no such layers."""
        if not 1 <= self.layers <= num_layers:
            raise ConfigError(f"fusion.layers {self.layers} must be from 1 to backbone.num_layers {num_layers}")


class DeepStack(nn.Module):
    """The layers of a decoder, with media added behind the first K. No parameters.

    Attributes:
        config: of what is added.
        block: of the decoder's blocks.
        num_layers: L, of the decoder.
        dtype: compute dtype.
        remat: rematerialisation policy, see `mmjax.nn.stack`.
    """

    config: DeepStackConfig
    block: BlockConfig
    num_layers: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

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
        """Runs the decoder.

        Args:
            apply, blocks, cache: as in `run_stack`.
            x: [B, T, (1 + K) * D]: embeddings, and what is added behind each of the first K layers, zeros at tokens of
                text; or [B, T, D], without anything added.
            memory, memory_mask, is_media: not read.

        Returns:
            x [B, T, D], and the cache in the form it came in.

        Raises:
            ValueError: x has another width.
        """
        width, layers = self.block.width, self.config.layers
        x, added = x[..., :width], x[..., width:]
        if not added.shape[-1]:
            return run_stack(apply, blocks, x, cache, self.remat)
        if added.shape[-1] != layers * width:
            raise ValueError(
                f"media tokens are {added.shape[-1] + width} wide; fusion with {layers} layers of width {width} takes "
                f"{(1 + layers) * width}: does the projector give features of {1 + layers} layers?"
            )

        def behind(number: Any) -> jax.Array | float:
            if isinstance(number, int):
                return added[..., number * width : (number + 1) * width] if number < layers else 0.0
            own = jax.lax.dynamic_slice_in_dim(added, jnp.minimum(number, layers - 1) * width, width, axis=-1)
            return jnp.where(number < layers, own, 0)

        def run(layer, x, layer_cache):
            x, given = apply(layer["block"], x, layer_cache)
            return x + behind(layer["number"]), given

        unrolled = isinstance(blocks, tuple)
        numbers = tuple(range(self.num_layers)) if unrolled else jnp.arange(self.num_layers)
        return run_stack(run, side_by_side(block=blocks, number=numbers), x, cache, self.remat)
