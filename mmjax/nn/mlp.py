"""The feed-forward layer of a transformer block, plain or gated."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import check_choice
from mmjax.distributed.rules import constrain
from mmjax.nn.linear import Linear
from mmjax.nn.lora import LoRAConfig
from mmjax.nn.norms import NormConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def check_activation(where: str, name: str) -> None:
    """Raises ConfigError unless `name` is an activation that is known here."""
    check_choice(where, name, tuple(ACTIVATIONS))


class MLP(nn.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer, 2020). up, gate [D, F], down [F, D].

    `inner_norm` is a normalisation over F before down (Wang et al., 2022, "Magneto").
    """

    width: int
    hidden: int
    activation: str
    gated: bool = False
    use_bias: bool = False
    lora: LoRAConfig | None = None
    dtype: jnp.dtype = jnp.float32
    inner_norm: NormConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., T, D] -> [..., T, D]."""

        def linear(name, features, axes):
            lora = self.lora.at(name) if self.lora else None
            return Linear((features,), axes, use_bias=self.use_bias, lora=lora, dtype=self.dtype, name=name)

        act = ACTIVATIONS[self.activation]
        h = linear("up", self.hidden, ("embed", "mlp"))(x)
        h = act(linear("gate", self.hidden, ("embed", "mlp"))(x)) * h if self.gated else act(h)
        if h.ndim == 3:
            h = constrain(h, "batch", "length", "act_mlp")
        if self.inner_norm is not None:
            h = self.inner_norm.module(self.dtype, "sub_norm")(h)
        return linear("down", self.width, ("mlp", "embed"))(h)
