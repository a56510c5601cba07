"""A residual MLP that denoises a whole latent as one vector, for latents that are small (Li et al., 2024, "MAR").

No place of the latent is far from another, as none is a token of its own: what must fit together everywhere is drawn
together, at the price of a first and a last layer as wide as the latent. Unlike MAR's, norms inside the blocks have no
scale and shift of their own, the condition passes an MLP, and MLPs may be wider than what flows: no weights of it are
read.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.conditions import read_sequence
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.stack import check_remat, init_stack, run_stack
from mmjax.nn.time_embedding import frequencies

# Waves that a time is made of.
TIME_WAVES = 256


@dataclasses.dataclass(frozen=True)
class MLPDenoiserConfig:
    """Sizes and options.

    Attributes:
        in_channels, out_channels: of the latent and of the prediction.
        sample_size: places of a side of the latents, which are square.
        width, num_layers: D, L.
        hidden: channels inside each of the L MLPs.
        activation: of these; see `mmjax.nn.mlp`.
        context_width, context_tokens: channels and number of the condition's tokens.
    """

    in_channels: int
    out_channels: int
    sample_size: int
    width: int
    num_layers: int
    hidden: int
    context_width: int
    context_tokens: int
    activation: str = "silu"

    kind: ClassVar[str] = "mlp_denoiser"

    def __post_init__(self):
        check_activation("mlp_denoiser.activation", self.activation)
        for name in ("sample_size", "width", "num_layers", "hidden", "context_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mlp_denoiser.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the one latent that `create` may be called with."""
        return (self.sample_size, self.sample_size, self.in_channels)


class MLPDenoiserBlock(nn.Module):
    """x + gate * MLP(norm(x) * (1 + scale) + shift). Parameters modulation, mlp."""

    config: MLPDenoiserConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        """x [B, 1, D], vector [B, D] -> [B, 1, D]."""
        c = self.config
        shift, scale, gate = Modulation(3, c.width, self.dtype, name="modulation")(vector)
        mlp = MLP(c.width, c.hidden, c.activation, use_bias=True, dtype=self.dtype, name="mlp")
        return x + gate * mlp(modulated(x, shift, scale))


class MLPDenoiser(nn.Module):
    """(noisy latent, time, condition) -> prediction.

    Parameters proj_in; time, context; blocks [L, ...]; modulation, proj_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: MLPDenoiserConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, h, w, in], times [B] or a scalar -> [B, h, w, out].

        Args:
            x: the noisy latent.
            times: of training.
            condition: `sequence` [B, N, C] with N context_tokens, without any that do not count.

        Raises:
            ValueError: a latent of another shape, or a condition of another shape or with a mask.
        """
        c, batch = self.config, x.shape[0]
        check_remat(self.remat)
        if x.shape[1:] != c.feature_shape:
            raise ValueError(f"latents are {x.shape}; wanted [B, {', '.join(map(str, c.feature_shape))}]")
        source, mask = read_sequence(condition, c.context_width)
        if source.shape[1] != c.context_tokens or mask is not None:
            masked = " with a mask" if mask is not None else ""
            raise ValueError(f"a condition of {source.shape[1]} tokens{masked}; wanted {c.context_tokens}, all of them")

        def embedded(name, values):
            return MLP(c.width, c.width, "silu", use_bias=True, dtype=self.dtype, name=name)(values)

        waves = frequencies(jnp.broadcast_to(times, (batch,)), TIME_WAVES)
        vector = embedded("time", waves) + embedded("context", source.reshape(batch, -1).astype(self.dtype))
        x = x.reshape(batch, 1, -1).astype(self.dtype)
        x = Linear((c.width,), ("feature", "embed"), use_bias=True, dtype=self.dtype, name="proj_in")(x)
        block = MLPDenoiserBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            blocks = nn.unbox(self.param("blocks", init_stack(block, c.num_layers, x[:1], vector[:1])))
        else:
            blocks = self.get_variable("params", "blocks")
        x, _ = run_stack(
            lambda layer, x, cache: (block.apply({"params": layer}, x, vector), cache), blocks, x, remat=self.remat
        )
        shift, scale = Modulation(2, c.width, self.dtype, name="modulation")(vector)
        out = (c.sample_size**2 * c.out_channels,)
        linear = Linear(out, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="proj_out")
        return linear(modulated(x, shift, scale)).reshape(batch, c.sample_size, c.sample_size, c.out_channels)

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        c, batch = self.config, x.shape[0]
        return self(x, jnp.zeros(batch), Condition(jnp.zeros((batch, c.context_tokens, c.context_width))))
