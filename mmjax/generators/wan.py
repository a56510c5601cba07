"""A transformer that denoises latents of videos that a text describes (Wan Team, 2025, "Wan").

Of its kinds that which reads text alone: Wan 2.1's text-to-video models, and either half of Wan 2.2's.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.distributed.rules import constrain
from mmjax.generators.conditions import read_sequence
from mmjax.generators.pixart import added_table
from mmjax.nn.attention import Attention
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.norms import LayerNorm, NormConfig
from mmjax.nn.stack import check_remat, init_stack, run_stack
from mmjax.nn.time_embedding import frequencies

THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """Sizes and options; the defaults are those of the 14 billion parameters.

    Attributes:
        in_channels, out_channels: of the latent and of the prediction.
        patch: frames, rows and columns of the latent that are one token.
        num_heads, head_dim, num_layers, mlp_width: H, C, L, F; D is H C.
        context_width: channels of the condition's tokens.
        time_waves: channels of the time's embedding, before it is mapped to D.
        reading_norm: whether tokens are normalised before they read the condition.
        norm_eps: of all norms.
        sample_size: places of the shorter side of the latents that it was trained with; others work.
    """

    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    num_heads: int = 40
    head_dim: int = 128
    num_layers: int = 40
    mlp_width: int = 13824
    context_width: int = 4096
    time_waves: int = 256
    reading_norm: bool = True
    norm_eps: float = 1e-6
    sample_size: int = 60

    kind: ClassVar[str] = "wan"

    def __post_init__(self):
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ConfigError(f"wan.patch {self.patch} must be frames, rows and columns, each at least 1")
        if self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(f"wan.head_dim {self.head_dim} must be even and at least 6: three axes turn it in pairs")
        if self.time_waves % 2:
            raise ConfigError(f"wan.time_waves {self.time_waves} must be even: sines and cosines")

    @property
    def width(self) -> int:
        """D."""
        return self.num_heads * self.head_dim

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        return (*self.patch, self.in_channels)


def grid_rotation(head_dim: int, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [1, T H W, C / 2] each, of the places of a grid, frames outermost.

    Rows and columns turn a third of the pairs each, rounded down; frames turn the others, which come first.
    """
    side = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        speed = 1.0 / THETA ** (np.arange(0, width, 2) / width)
        turned = np.arange(grid[axis])[:, None] * speed
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        angles.append(np.broadcast_to(turned.reshape(shape), (*grid, width // 2)))
    angle = np.concatenate(angles, axis=-1).reshape(1, -1, head_dim // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class WanBlock(nn.Module):
    """Attention, reading the condition, MLP; of these the first and the last are told how by vectors.

    Parameters table [6, D], which is added to the vectors that all blocks are given; attn, cross, mlp; cross_norm.
    """

    config: WanConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        shared: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        source: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, N, D], shared [B, 6, D], cos and sin [1, N, C / 2], source [B, S, D], mask bool [B, S] -> [B, N, D]."""
        c = self.config

        def attention(name):
            return Attention(
                c.width, c.num_heads, c.num_heads, c.head_dim, True, True, dtype=self.dtype,
                qk_norm=NormConfig("rms", c.norm_eps), joint_qk_norm=True, rotary_interleaved=True, name=name,
            )  # fmt: skip

        vectors = added_table(self, c.width, shared, self.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = vectors
        x = x + gate * attention("attn")(modulated(x, shift, scale, c.norm_eps), None, rotation)[0]
        h = LayerNorm(c.norm_eps, self.dtype, name="cross_norm")(x) if c.reading_norm else x
        x = x + attention("cross")(h, None if mask is None else mask[:, None], source=source)[0]
        mlp = MLP(c.width, c.mlp_width, "gelu_tanh", use_bias=True, dtype=self.dtype, name="mlp")
        x = x + mlp_gate * mlp(modulated(x, mlp_shift, mlp_scale, c.norm_eps))
        return constrain(x, "batch", "length", "act_embed")


class Wan(nn.Module):
    """(noisy latent of a video, time, condition) -> prediction.

    Parameters patches, time, modulation, context; blocks [L, ...]; table, proj_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: WanConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, T, h, w, in], times [B] or a scalar -> [B, T, h, w, out].

        Args:
            x: the noisy latent.
            times: of training.
            condition: `sequence` [B, S, context_width] with `mask`.

        Raises:
            ValueError: a latent of another number of channels, of frames or sides that are no multiple of the patch's,
                or a condition of another width.
        """
        c, batch = self.config, x.shape[0]
        check_remat(self.remat)
        if x.ndim != 5 or x.shape[-1] != c.in_channels:
            raise ValueError(f"latents are {tuple(x.shape)}; wanted [B, T, h, w, {c.in_channels}]")
        if any(size % by for size, by in zip(x.shape[1:4], c.patch, strict=True)):
            raise ValueError(f"latents of {x.shape[1:4]} places; they must be multiples of {tuple(c.patch)}")
        grid = tuple(size // by for size, by in zip(x.shape[1:4], c.patch, strict=True))
        source, mask = read_sequence(condition, c.context_width)

        def mlp(name, values):
            activation = "silu" if name == "time" else "gelu_tanh"
            return MLP(c.width, c.width, activation, use_bias=True, dtype=self.dtype, name=name)(values)

        vector = mlp("time", frequencies(jnp.broadcast_to(times, (batch,)), c.time_waves))
        shared = jnp.concatenate(Modulation(6, c.width, self.dtype, name="modulation")(vector), axis=1)
        source = mlp("context", source.astype(self.dtype))
        rotation = grid_rotation(c.head_dim, grid)
        axes = ("patch", "patch", "patch", "feature", "embed")
        x = Linear((c.width,), axes, 4, True, dtype=self.dtype, name="patches")(cut(x, c.patch))
        x = constrain(x, "batch", "length", "act_embed")
        block = WanBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            one = tuple(part[:, :1] for part in rotation)
            init = init_stack(block, c.num_layers, x[:1, :1], shared[:1], one, source[:1, :1])
            blocks = nn.unbox(self.param("blocks", init))
        else:
            blocks = self.get_variable("params", "blocks")
        x, _ = run_stack(
            lambda layer, x, cache: (block.apply({"params": layer}, x, shared, rotation, source, mask), cache),
            blocks, x, remat=self.remat,
        )  # fmt: skip
        shift, scale = added_table(self, c.width, jnp.broadcast_to(vector[:, None], (batch, 2, c.width)), self.dtype)
        x = modulated(x, shift, scale, c.norm_eps)
        out = (int(np.prod(c.patch)) * c.out_channels,)
        x = Linear(out, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="proj_out")(x)
        return joined(x, grid, c.patch)

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, T, h, w, in]."""
        return self(x, jnp.zeros(x.shape[0]), Condition(jnp.zeros((x.shape[0], 1, self.config.context_width))))


def cut(x: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """[B, T, h, w, C] -> [B, N, *patch, C], patches in rows of each frame."""
    t, h, w = (size // by for size, by in zip(x.shape[1:4], patch, strict=True))
    x = x.reshape(x.shape[0], t, patch[0], h, patch[1], w, patch[2], x.shape[-1])
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(x.shape[0], t * h * w, *patch, x.shape[-1])


def joined(x: jax.Array, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> jax.Array:
    """Tokens [B, N, prod(patch) * C], channels innermost -> [B, T, h, w, C]."""
    x = x.reshape(x.shape[0], *grid, *patch, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], *(size * by for size, by in zip(grid, patch, strict=True)), x.shape[-1])
