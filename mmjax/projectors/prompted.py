"""A projector that is trained beside a P-Former, whose prompts say what its tokens should be."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.perceiver import PerceiverConfig, PerceiverProjector
from mmjax.projectors.prompter import Prompter, PrompterConfig
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector

READERS = {QFormerConfig: QFormerProjector, PerceiverConfig: PerceiverProjector}


@dataclasses.dataclass(frozen=True)
class PromptedConfig:
    """What reads the features, and what says what should be read.

    Attributes:
        reader: the projector itself, which no instruction is read by.
        prompter: the P-Former, which only training asks.
    """

    reader: QFormerConfig | PerceiverConfig
    prompter: PrompterConfig

    kind: ClassVar[str] = "prompted"

    def __post_init__(self):
        if getattr(self.reader, "vocab_size", None) is not None:
            raise ConfigError("prompted projector: its reader cannot read an instruction too; vocab_size must be null")
        features = self.reader.num_features
        if features is not None and self.reader.num_tokens(features) != self.prompter.num_prompts:
            raise ConfigError(
                f"prompted projector: prompter.num_prompts is {self.prompter.num_prompts}, but its reader makes "
                f"{self.reader.num_tokens(features)} tokens of an item"
            )

    @property
    def in_width(self) -> int:
        """Channels of a feature."""
        return self.reader.in_width

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.reader.width

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one item: the reader's."""
        return self.reader.num_tokens(num_features, grid)


class PromptedProjector(nn.Module):
    """The reader's tokens; and by a method of its own, prompts for captions. Parameters reader, prompter.

    Attributes:
        config: both.
        dtype: compute dtype.
    """

    config: PromptedConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.reader = READERS[type(self.config.reader)](self.config.reader, self.dtype)
        self.prompter = Prompter(self.config.prompter, self.config.width, self.dtype)

    def __call__(self, media: Media, train: bool = False) -> Media:
        """Features [B, N, in_width] -> the reader's tokens; `train` turns on its dropout."""
        if self.is_initializing():
            self.prompter(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool), jnp.zeros((1, 1), bool))
        return self.reader(media, train)

    def prompts(
        self, tokens: jax.Array, seen: jax.Array, hidden: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the P-Former makes of captions, see `Prompter`."""
        return self.prompter(tokens, seen, hidden)
