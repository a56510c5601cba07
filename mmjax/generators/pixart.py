"""A transformer that denoises latents of images that a caption describes (Chen et al., 2023, "PixArt-alpha").

PixArt-Sigma (Chen et al., 2024) is the same at larger sizes.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.adaptive_block import AdaptiveBlock
from mmjax.generators.conditions import read_extra, read_sequence
from mmjax.generators.dit import NORM_EPS, TIME_WAVES, check_width
from mmjax.generators.latent_patches import LatentPatches, patch_grid, stretched_places, together
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.stack import check_remat, init_stack, run_stack
from mmjax.nn.time_embedding import frequencies


@dataclasses.dataclass(frozen=True)
class PixArtConfig:
    """Sizes and options; the defaults are PixArt-XL/2's at 1024 pixels.

    Attributes:
        in_channels, out_channels: of the latent and of the prediction; with twice as many out, the second half says
            the variance.
        patch: side of the square of the latent that is one token.
        width, num_heads, num_layers: D, H, L.
        context_width: channels of the condition's tokens.
        maps_context: whether these are brought to D by an MLP first.
        reads_size: whether the size and the shape of the image wanted are read.
        norm_eps: of the norms in the blocks.
        qkv_bias: whether q, k and v have biases.
        stretch: how much closer the positions stand.
        sample_size: places of a side of the latents that it was trained with; others work.
    """

    in_channels: int = 4
    out_channels: int = 8
    patch: int = 2
    width: int = 1152
    num_heads: int = 16
    num_layers: int = 28
    context_width: int = 4096
    maps_context: bool = True
    reads_size: bool = True
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    stretch: float = 2.0
    sample_size: int = 128

    kind: ClassVar[str] = "pixart"

    def __post_init__(self):
        check_width(self)
        if self.reads_size and self.width % 3:
            raise ConfigError(f"pixart.width: {self.width} is not a multiple of 3, as reads_size needs")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        return (self.patch, self.patch, self.in_channels)


class PixArtBlock(nn.Module):
    """Parameters table [6, D], which is added to the vectors that all blocks are given; halves."""

    config: PixArtConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shared: jax.Array, source: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, T, D], shared [B, 6, D], source [B, N, C] and its mask bool [B, N] -> [B, T, D]."""
        c = self.config
        vectors = added_table(self, c.width, shared, self.dtype)
        halves = AdaptiveBlock(
            c.width, c.num_heads, c.qkv_bias, c.norm_eps, c.norm_eps, True, self.dtype, name="halves"
        )
        return halves(x, vectors, source, mask)


def added_table(module: nn.Module, width: int, shared: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """shared [B, count, D] with the parameter "table" [count, D] of a module added -> count of [B, 1, D]."""
    init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("feature", "embed"))
    parts = shared + module.param("table", init, (shared.shape[1], width)).astype(dtype)
    return tuple(parts[:, number, None] for number in range(shared.shape[1]))


class PixArt(nn.Module):
    """(noisy latent, time, condition) -> prediction.

    Parameters patches; time, modulation, and resolution, aspect_ratio, context as the config says; blocks [L, ...];
    table, proj_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: PixArtConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, h, w, in], times [B] or a scalar -> [B, h, w, out].

        Args:
            x: the noisy latent.
            times: of training.
            condition: `sequence` [B, N, C] with `mask`; where the config `reads_size`, `extras` with "resolution"
                [B, 2], height and width in pixels, and "aspect_ratio" [B, 1], height by width.

        Raises:
            ValueError: a latent of another number of channels, of sides that are no multiple of the patch's, or a
                condition without what the config reads.
        """
        c, batch = self.config, x.shape[0]
        check_remat(self.remat)
        grid = patch_grid(x, c.in_channels, c.patch)
        source, mask = read_sequence(condition, c.context_width)
        vector = self._vector(jnp.broadcast_to(times, (batch,)), condition)
        shared = jnp.concatenate(Modulation(6, c.width, self.dtype, name="modulation")(vector), axis=1)
        source = source.astype(self.dtype)
        if c.maps_context:
            source = MLP(c.width, c.width, "gelu_tanh", use_bias=True, dtype=self.dtype, name="context")(source)
        places = stretched_places(c.width, grid, c.sample_size // c.patch, c.stretch)
        x = LatentPatches(c.width, c.patch, self.dtype, name="patches")(x, places)
        block = PixArtBlock(c, self.dtype, parent=None)
        if self.is_initializing():
            init = init_stack(block, c.num_layers, x[:1, :1], shared[:1], source[:1, :1])
            blocks = nn.unbox(self.param("blocks", init))
        else:
            blocks = self.get_variable("params", "blocks")
        x, _ = run_stack(
            lambda layer, x, cache: (block.apply({"params": layer}, x, shared, source, mask), cache),
            blocks, x, remat=self.remat,
        )  # fmt: skip
        shift, scale = added_table(self, c.width, jnp.broadcast_to(vector[:, None], (batch, 2, c.width)), self.dtype)
        x = modulated(x, shift, scale, NORM_EPS)
        out = (c.patch**2 * c.out_channels,)
        x = Linear(out, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="proj_out")(x)
        return together(x, grid, c.patch)

    def _vector(self, times: jax.Array, condition: Condition) -> jax.Array:
        """[B, D]: the time, and where it is read the size."""
        c = self.config

        def embedded(name, values, width):
            waves = frequencies(values, TIME_WAVES)
            return MLP(width, width, "silu", use_bias=True, dtype=self.dtype, name=name)(waves)

        vector = embedded("time", times, c.width)
        if not c.reads_size:
            return vector
        # Two numbers and one, a third of the width each.
        sizes = [
            embedded(name, read_extra(condition, name, count), c.width // 3).reshape(len(times), -1)
            for name, count in (("resolution", 2), ("aspect_ratio", 1))
        ]
        return vector + jnp.concatenate(sizes, axis=-1)

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        batch = x.shape[0]
        extras = {"resolution": jnp.ones((batch, 2)), "aspect_ratio": jnp.ones((batch, 1))}
        sequence = jnp.zeros((batch, 1, self.config.context_width))
        return self(x, jnp.zeros(batch), Condition(sequence, extras=extras))
