"""One linear map of every signal token (Koh et al., 2023, "FROMAGe": from [RET] to the space of images)."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.data.contracts import Condition
from mmjax.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class LinearOutputConfig:
    """Widths and options.

    Attributes:
        in_width, width: D of the LLM, and of the condition.
        pooled: the condition's pooled vector: "none", the "mean" of its tokens, or the "first" of them.
    """

    in_width: int
    width: int
    pooled: str = "none"

    kind: ClassVar[str] = "linear_output"
    adds_embeddings: ClassVar[bool] = False

    def __post_init__(self):
        check_choice("linear_output.pooled", self.pooled, ("none", "mean", "first"))

    def num_tokens(self, signal_tokens: int) -> int:
        """Tokens of a condition: as many as its signal has."""
        return signal_tokens


class LinearOutput(nn.Module):
    """States [B, K, D] -> Condition with sequence [B, K, width]. Parameters out {kernel, bias}."""

    config: LinearOutputConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> Condition:
        """One signal a row."""
        c = self.config
        x = Linear((c.width,), ("embed", "feature"), use_bias=True, dtype=self.dtype, name="out")(
            states.astype(self.dtype)
        )
        pooled = {"none": None, "mean": x.mean(axis=1), "first": x[:, 0]}[c.pooled]
        return Condition(x, pooled=pooled)
