"""No encoder at all: vectors of numbers as they are, such as the state of a robot, for an MLP to make a token of.

Driess et al., 2023 ("PaLM-E").
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """How many numbers a vector has."""

    size: int

    kind: ClassVar[str] = "vector"

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"vector.size must be at least 1, got {self.size}")

    @property
    def feature_width(self) -> int:
        """Channels of the feature: the numbers."""
        return self.size

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (numbers,)."""
        return (self.size,)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one vector."""
        return 1


class Vector(nn.Module):
    """Vectors [B, I, numbers] as features. There are no parameters.

    Attributes:
        config: size of a vector.
        dtype: of the features.
        remat: does not matter.
    """

    config: VectorConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __call__(self, media: Media) -> Media:
        """Stage "raw" -> "encoded", nothing else.

        Raises:
            ValueError: vectors of another size.
        """
        return media.replace(values=self.run(media.values)["last_hidden_state"], stage="encoded")

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """values [B, I, numbers] -> "last_hidden_state", the same in `dtype`."""
        if values.shape[-1] != self.config.size:
            raise ValueError(f"vectors have {values.shape[-1]} numbers each; wanted {self.config.size}")
        return {"last_hidden_state": jnp.asarray(values, self.dtype)}

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """What `init` runs, though there is nothing to be made."""
        return self.run(values)
