"""A sketch of what is to be drawn, linear in a signal's hidden states, and tokens that say the rest.

A linear map may start from a regression in closed form (`mmjax.train.ridge`): a generator that sees the sketch beside
its noisy latent has to learn how to finish it, not where everything belongs. Handing a denoiser a first guess of the
whole is how super-resolution and deblurring by diffusion work (Saharia et al., 2021, "SR3"; Whang et al., 2022).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.nn.linear import Linear

# Standardised states beyond this are cut off.
LIMIT = 5.0


@dataclasses.dataclass(frozen=True)
class SketchOutputConfig:
    """Sizes.

    Attributes:
        in_width, width: D of the LLM, and of the condition's tokens.
        signal_tokens: K.
        sketch_shape: (h, w, C) of the generator's latents.
    """

    in_width: int
    width: int
    signal_tokens: int
    sketch_shape: tuple[int, int, int]

    kind: ClassVar[str] = "sketch_output"
    adds_embeddings: ClassVar[bool] = False

    def __post_init__(self):
        if len(self.sketch_shape) != 3 or min(self.sketch_shape) < 1 or self.signal_tokens < 1:
            raise ConfigError(
                f"sketch_output: sketch_shape is {self.sketch_shape} of {self.signal_tokens} signal_tokens; wanted "
                "three sides and at least one token"
            )

    def num_tokens(self, signal_tokens: int) -> int:
        """Tokens of a condition beside its sketch: as many as its signal has."""
        return signal_tokens


class SketchOutput(nn.Module):
    """States [B, K, D] -> Condition with sequence [B, K, width] and extras {"sketch": [B, h, w, C]}.

    Parameters: constants mean and std [K, D], which stage rules freeze by their paths; tokens {kernel, bias}, of each
    state; sketch {kernel [K * D, h * w * C], bias}, of all states together.
    """

    config: SketchOutputConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> Condition:
        """One signal a row.

        Raises:
            ValueError: signals of another number of tokens.
        """
        c = self.config
        if states.shape[1:] != (c.signal_tokens, c.in_width):
            raise ValueError(f"states are {states.shape}; wanted [B, {c.signal_tokens}, {c.in_width}]")
        x = self.standardised(states).astype(self.dtype)
        tokens = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name="tokens")(x)
        height, width, channels = c.sketch_shape
        wide = (height * width * channels,)
        linear = Linear(wide, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="sketch")
        sketch = linear(x.reshape(len(x), -1))
        return Condition(tokens, extras={"sketch": sketch.reshape(-1, *c.sketch_shape)})

    def standardised(self, states: jax.Array) -> jax.Array:
        """What both maps read, float32 [B, K, D]."""
        c, axes = self.config, (None, "feature")
        shape = (c.signal_tokens, c.in_width)
        mean = self.param("mean", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape)
        std = self.param("std", nn.with_logical_partitioning(nn.initializers.ones, axes), shape)
        x = jnp.clip((states.astype(jnp.float32) - mean) / std, -LIMIT, LIMIT)
        # No signal, states of zeros, is none in particular: the sketch is the average one.
        return jnp.where(jnp.any(states != 0, axis=(1, 2), keepdims=True), x, 0.0)
