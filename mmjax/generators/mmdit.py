"""A transformer that denoises latents of images beside the tokens of their captions (Esser et al., 2024, "MMDiT").

Stable Diffusion 3 and 3.5.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.conditions import read_pooled, read_sequence
from mmjax.generators.dit import TIME_WAVES, check_width
from mmjax.generators.joint_block import JointBlock
from mmjax.generators.latent_patches import LatentPatches, patch_grid, together
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP
from mmjax.nn.modulation import Modulation, modulated
from mmjax.nn.sincos import sincos_line
from mmjax.nn.stack import check_remat, init_stack, run_stack
from mmjax.nn.time_embedding import frequencies

PLACE_AXES = ("patch", "patch", "embed")


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Sizes and options; the defaults are Stable Diffusion 3 Medium's.

    Attributes:
        in_channels, out_channels: of the latent and of the prediction.
        patch: side of the square of the latent that is one token.
        width, num_heads: D, H.
        num_layers: L; in the last the caption is only read.
        twice_layers: how many layers, from the first on, have a second attention of the image to itself.
        context_width, pooled_width: channels of the condition's tokens and of its pooled vector.
        qk_norm: whether every head of q and of k is normalised.
        max_grid: patches of a side of the largest latent; a smaller one has the positions in the middle.
        sample_size: places of a side of the latents that it was trained with; others work.
    """

    in_channels: int = 16
    out_channels: int = 16
    patch: int = 2
    width: int = 1536
    num_heads: int = 24
    num_layers: int = 24
    twice_layers: int = 0
    context_width: int = 4096
    pooled_width: int = 2048
    qk_norm: bool = False
    max_grid: int = 192
    sample_size: int = 128

    kind: ClassVar[str] = "mmdit"

    def __post_init__(self):
        check_width(self)
        if not 0 <= self.twice_layers < self.num_layers:
            raise ConfigError(f"mmdit.twice_layers: {self.twice_layers} is not less than num_layers {self.num_layers}")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest latent that `create` may be called with."""
        return (self.patch, self.patch, self.in_channels)


class MMDiT(nn.Module):
    """(noisy latent, time, condition) -> prediction.

    Parameters patches, places [max_grid, max_grid, D], time, pooled, context; twice [twice_layers, ...] and blocks
    [L - 1 - twice_layers, ...] where there are such, last; modulation, proj_out.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the stacked blocks.
    """

    config: MMDiTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, condition: Condition | None = None) -> jax.Array:
        """x [B, h, w, in], times [B] or a scalar -> [B, h, w, out].

        Args:
            x: the noisy latent.
            times: of training, from 0 to the number of steps.
            condition: `sequence` [B, N, C] and `pooled` [B, P]. A `mask` leaves tokens of it out, which published
                models were not trained with.

        Raises:
            ValueError: a latent of another number of channels, of sides that are no multiple of the patch's or larger
                than `max_grid` patches, or a condition without what the config reads.
        """
        c = self.config
        check_remat(self.remat)
        grid = patch_grid(x, c.in_channels, c.patch)
        source, mask = read_sequence(condition, c.context_width)
        pooled = read_pooled(condition, c.pooled_width)

        def embedded(name, values):
            return MLP(c.width, c.width, "silu", use_bias=True, dtype=self.dtype, name=name)(values)

        vector = embedded("time", frequencies(jnp.broadcast_to(times, x.shape[:1]), TIME_WAVES))
        vector = vector + embedded("pooled", pooled)
        x = LatentPatches(c.width, c.patch, self.dtype, name="patches")(x, self._places(grid))
        axes = ("feature", "embed")
        source = Linear((c.width,), axes, use_bias=True, dtype=self.dtype, name="context")(source)
        both = x, source
        if mask is not None:
            # Of all that is seen, image first.
            mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)[:, None]
        for name, count, twice in (
            ("twice", c.twice_layers, True),
            ("blocks", c.num_layers - 1 - c.twice_layers, False),
        ):
            if count:
                both = self._stack(name, count, twice, both, vector, mask)
        x, _ = JointBlock(c.width, c.num_heads, c.qk_norm, last=True, dtype=self.dtype, name="last")(
            *both, vector, mask
        )
        # Here, and for the caption in the last block, the scale comes first.
        scale, shift = Modulation(2, c.width, self.dtype, name="modulation")(vector)
        x = modulated(x, shift, scale)
        out = (c.patch**2 * c.out_channels,)
        x = Linear(out, ("embed", "feature"), use_bias=True, dtype=self.dtype, name="proj_out")(x)
        return together(x, grid, c.patch)

    def _stack(self, name: str, count: int, twice: bool, both, vector: jax.Array, mask: jax.Array | None):
        c = self.config
        block = JointBlock(c.width, c.num_heads, c.qk_norm, twice, dtype=self.dtype, parent=None)
        if self.is_initializing():
            init = init_stack(block, count, *(stream[:1, :1] for stream in both), vector[:1])
            blocks = nn.unbox(self.param(name, init))
        else:
            blocks = self.get_variable("params", name)
        both, _ = run_stack(
            lambda layer, both, cache: (block.apply({"params": layer}, *both, vector, mask), cache),
            blocks, both, remat=self.remat,
        )  # fmt: skip
        return both

    def _places(self, grid: tuple[int, int]) -> jax.Array:
        """The middle of the positions; they are weights of a checkpoint, but are never trained."""
        c = self.config
        if max(grid) > c.max_grid:
            raise ValueError(f"a latent of {grid[0]} x {grid[1]} patches; there are positions for {c.max_grid} a side")
        steps = np.arange(c.max_grid, dtype=np.float32) / (c.max_grid / (c.sample_size // c.patch))

        def init(rng):
            # By jax, so that nothing as large as this is made where only shapes are asked for.
            line, shape = sincos_line(c.width // 2, steps), (c.max_grid, c.max_grid, c.width // 2)
            return jnp.concatenate([jnp.broadcast_to(part, shape) for part in (line[None], line[:, None])], axis=-1)

        places = jax.lax.stop_gradient(self.param("places", nn.with_logical_partitioning(init, PLACE_AXES)))
        top, left = ((c.max_grid - side) // 2 for side in grid)
        return places[top : top + grid[0], left : left + grid[1]]

    def create(self, x: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. x [B, h, w, in]."""
        c, batch = self.config, x.shape[0]
        sequence, pooled = jnp.zeros((batch, 1, c.context_width)), jnp.zeros((batch, c.pooled_width))
        return self(x, jnp.zeros(batch), Condition(sequence, None, pooled))
