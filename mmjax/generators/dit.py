"""A transformer that denoises latents of images of a class (Peebles & Xie, 2022, "DiT")."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.adaptive_block import AdaptiveBlock
from mmjax.generators.latent_patches import LatentPatches, patch_grid, stretched_places, together
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.stack import check_remat, init_stack, run_stack
from mmjax.nn.time_embedding import frequencies

# Waves that a time is made of.
TIME_WAVES = 256
NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes and options; the defaults are DiT-XL/2's.

    Attributes:
        in_channels, out_channels: of the latent and of the prediction; with twice as many out, the second half says
            the variance.
        patch: side of the square of the latent that is one token.
        width, num_heads, num_layers: D, H, L.
        num_classes: classes; the number after the last one stands for no class.
        mlp_eps: of the norms in front of the MLPs.
        qkv_bias: whether q, k and v have biases.
        sample_size: places of a side of the latents that it was trained with; others work.
    """

    in_channels: int = 4
    out_channels: int = 8
    patch: int = 2
    width: int = 1152
    num_heads: int = 16
    num_layers: int = 28
    num_classes: int = 1000
    mlp_eps: float = 1e-5
    qkv_bias: bool = True
    sample_size: int = 32

    kind: ClassVar[str] = "dit"
    context_width: ClassVar[None] = None

    def __post_init__(self):
        check_width(self)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        return (self.patch, self.patch, self.in_channels)


def check_width(config) -> None:
    """Raises ConfigError unless `width` is a multiple of `num_heads` and of 4, as its positions need."""
    if config.width % config.num_heads or config.width % 4:
        raise ConfigError(
            f"{config.kind}.width: {config.width} is not a multiple of num_heads {config.num_heads} and of 4"
        )


class TimeAndClass(nn.Module):
    """Parameters time, classes [num_classes + 1, D]."""

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, waves: jax.Array, classes: jax.Array) -> jax.Array:
        """The time's waves [B, .] and classes int32 [B] -> [B, D]."""
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("feature", "embed"))
        table = self.param("classes", init, (c.num_classes + 1, c.width))
        time = MLP(c.width, c.width, "silu", use_bias=True, dtype=self.dtype, name="time")(waves)
        return time + table[classes].astype(self.dtype)


class DiTBlock(nn.Module):
    """Parameters embed, modulation, halves; each block embeds time and class by itself."""

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, waves: jax.Array, classes: jax.Array) -> jax.Array:
        """x [B, T, D], waves [B, .], classes int32 [B] -> [B, T, D]."""
        c = self.config
        vector = TimeAndClass(c, self.dtype, name="embed")(waves, classes)
        vectors = Modulation(6, c.width, self.dtype, name="modulation")(vector)
        halves = AdaptiveBlock(c.width, c.num_heads, c.qkv_bias, NORM_EPS, c.mlp_eps, dtype=self.dtype, name="halves")
        return halves(x, vectors)


class DiT(nn.Module):
    """(noisy latent, time, condition) -> prediction. Parameters patches, blocks [L, ...], modulation, proj_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, h, w, in], times [B] or a scalar -> [B, h, w, out].

        Args:
            x: the noisy latent.
            times: of training.
            condition: `extras["classes"]`, int32 [B], from 0; `num_classes`, or no condition at all, is no class.

        Raises:
            ValueError: a latent of another number of channels, or of sides that are no multiple of the patch's.
        """
        c, batch = self.config, x.shape[0]
        check_remat(self.remat)
        grid = patch_grid(x, c.in_channels, c.patch)
        extras = (None if condition is None else condition.extras) or {}
        classes = jnp.broadcast_to(extras.get("classes", c.num_classes), (batch,))
        waves = frequencies(jnp.broadcast_to(times, (batch,)), TIME_WAVES, shift=1.0)
        places = stretched_places(c.width, grid, c.sample_size // c.patch)
        x = LatentPatches(c.width, c.patch, self.dtype, name="patches")(x, places)
        block = DiTBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            init = init_stack(block, c.num_layers, x[:1, :1], waves[:1], classes[:1])
            blocks = nn.unbox(self.param("blocks", init))
        else:
            blocks = self.get_variable("params", "blocks")
        x, _ = run_stack(
            lambda layer, x, cache: (block.apply({"params": layer}, x, waves, classes), cache),
            blocks, x, remat=self.remat,
        )  # fmt: skip
        # The first block's: there is none of its own for the end.
        first = blocks[0] if isinstance(blocks, tuple) else jax.tree.map(lambda leaf: leaf[0], blocks)
        vector = TimeAndClass(c, self.dtype, parent=None).apply({"params": first["embed"]}, waves, classes)
        shift, scale = Modulation(2, c.width, self.dtype, name="modulation")(vector)
        x = modulated(x, shift, scale, NORM_EPS)
        out = (c.patch**2 * c.out_channels,)
        x = Linear(out, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="proj_out")(x)
        return together(x, grid, c.patch)

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        return self(x, jnp.zeros(x.shape[0]))
