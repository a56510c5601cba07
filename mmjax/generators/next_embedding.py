"""Media that a language model writes as it writes words: each next embedding is a regression (Sun et al., 2023, "Emu").

The embeddings are those that media of an input port have in the text, so that what is written can be read again. There
is nothing to learn here: the map from hidden states is the output projector's. Whatever decodes embeddings to pixels is
a generator of its own.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition


@dataclasses.dataclass(frozen=True)
class NextEmbeddingConfig:
    """Which embeddings.

    Attributes:
        of: the input port whose embeddings are written.
        width: D of the LLM.
    """

    of: str
    width: int

    kind: ClassVar[str] = "next_embedding"

    @property
    def condition_width(self) -> int:
        """Channels of an embedding."""
        return self.width

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape of what `create` is called with."""
        return (1, self.width)

    def check_encoder(self, encoder: Any) -> None:
        """Raises ConfigError where there is an encoder: it would have nothing to read."""
        if encoder is not None:
            raise ConfigError("a next_embedding generator has no encoder of its own")


class NextEmbedding(nn.Module):
    """Without parameters."""

    config: NextEmbeddingConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __call__(self, condition: Condition) -> jax.Array:
        """The embeddings [B, N, D] that a condition is."""
        return condition.sequence

    def create(self, embeddings: jax.Array) -> jax.Array:
        """There is nothing to create."""
        return embeddings
