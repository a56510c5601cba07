"""Whether what is signalled shall be made anew or looked up: a linear classifier (Koh et al., 2023, "GILL").

The published one also reads how near the best of the images is that could be looked up; this one reads the signal
alone.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.choice_targets import CHOICES
from mmjax.data.contracts import Condition
from mmjax.nn.linear import Linear

DRAW, RETRIEVE = (CHOICES.index(name) for name in ("draw", "retrieve"))


@dataclasses.dataclass(frozen=True)
class DecisionConfig:
    """Sizes.

    Attributes:
        width: channels of the condition.
        num_choices: what there is to choose from: DRAW, RETRIEVE, and what an application adds.
    """

    width: int
    num_choices: int = len(CHOICES)

    kind: ClassVar[str] = "decision"

    def __post_init__(self):
        if self.num_choices < len(CHOICES):
            raise ConfigError(f"decision.num_choices must be at least {len(CHOICES)}, got {self.num_choices}")

    @property
    def condition_width(self) -> int:
        """Channels of a condition."""
        return self.width

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of what is classified."""
        return (self.width,)

    def check_encoder(self, encoder: Any) -> None:
        """Raises ConfigError where there is an encoder: nothing would read it."""
        if encoder is not None:
            raise ConfigError(f"a decision reads no encoder, generator_encoders has a {encoder.kind} for it")


class Decision(nn.Module):
    """Parameters out {kernel, bias}.

    Attributes:
        config: sizes.
        dtype: compute dtype.
        remat: does not matter.
    """

    config: DecisionConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.out = Linear((self.config.num_choices,), ("embed", "feature"), use_bias=True, dtype=self.dtype)

    def __call__(self, condition: Condition) -> jax.Array:
        """float32 logits [B, num_choices] of a condition's pooled vector, else of its tokens' mean."""
        x = condition.sequence.mean(axis=1) if condition.pooled is None else condition.pooled
        return self.out(x).astype(jnp.float32)

    def create(self, features: jax.Array) -> None:
        """Touches every parameter once: what `init` runs. features [B, width]."""
        self.out(features)
