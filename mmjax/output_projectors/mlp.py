"""Two linear maps with an activation between, on every signal token (Lai et al., 2024, "LISA")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.data.contracts import Condition
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation


@dataclasses.dataclass(frozen=True)
class MLPOutputConfig:
    """Widths and options.

    Attributes:
        in_width, hidden, width: D of the LLM, between the maps, of the condition.
        activation: between the maps.
        pooled: the condition's pooled vector: "none", or the "mean" of its tokens.
    """

    in_width: int
    hidden: int
    width: int
    activation: str = "relu"
    pooled: str = "none"

    kind: ClassVar[str] = "mlp_output"
    adds_embeddings: ClassVar[bool] = False

    def __post_init__(self):
        check_activation("mlp_output.activation", self.activation)
        check_choice("mlp_output.pooled", self.pooled, ("none", "mean"))

    def num_tokens(self, signal_tokens: int) -> int:
        """Tokens of a condition: as many as its signal has."""
        return signal_tokens


class MLPOutput(nn.Module):
    """States [B, K, D] -> Condition with sequence [B, K, width]. Parameters fc1 and fc2, each {kernel, bias}."""

    config: MLPOutputConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> Condition:
        """One signal a row."""
        c = self.config
        fc1 = Linear((c.hidden,), ("embed", "mlp"), use_bias=True, dtype=self.dtype, name="fc1")
        fc2 = Linear((c.width,), ("mlp", "feature"), use_bias=True, dtype=self.dtype, name="fc2")
        x = fc2(ACTIVATIONS[c.activation](fc1(states.astype(self.dtype))))
        return Condition(x, pooled=x.mean(axis=1) if c.pooled == "mean" else None)
