"""The Swin transformer: attention in windows, shifted in every second block, over a pyramid of maps.

Liu et al., 2021, "Swin Transformer: Hierarchical vision transformer using shifted windows".
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.maps import check_stages, images_of, media_of
from mmjax.encoders.vit import patches_of
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# The norms behind the patches and before a merging have this epsilon in every published model.
MAP_NORM_EPS = 1e-5
# What a pair of places from two sides of a shifted map loses in the softmax, as published models have it.
APART = -100.0


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes and options of a Swin transformer.

    Attributes:
        image_size: pixels of a side; features are counted for it.
        patch_size: pixels of a side that become one place of the first map.
        width: D of the first stage; every further stage doubles it and halves the map.
        depths, num_heads: blocks and H of each stage.
        window_size: places of a side that attend to each other.
        mlp_ratio: F is D times this.
        activation, norm_eps: of the blocks, the latter also of the last norm.
        qkv_bias: whether q, k and v have biases.
        absolute_positions: whether patches have learned positions besides the relative ones of the windows.
        feature_stages: whose maps the features are, from 0; the last one named gives the features, the others
            go to `extra_features`. The last stage's map is normed.
    """

    image_size: int = 224
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    qkv_bias: bool = True
    absolute_positions: bool = False
    feature_stages: tuple[int, ...] = (-1,)

    kind: ClassVar[str] = "swin"

    def __post_init__(self):
        check_activation("swin.activation", self.activation)
        check_stages("swin", self.feature_stages, depths=self.depths, num_heads=self.num_heads)
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise ConfigError(f"swin.num_heads: {heads} does not divide the stage's width {width}")
        if self.absolute_positions and self.image_size % self.patch_size:
            raise ConfigError(
                f"swin.absolute_positions: image_size {self.image_size} is not a multiple of patch_size "
                f"{self.patch_size}, so there is no position for the patches at the edge"
            )
        if min(self.grid_sizes) < self.window_size:
            raise ConfigError(
                f"swin.window_size {self.window_size} is larger than a map: image_size {self.image_size} and "
                f"patch_size {self.patch_size} give maps of sides {', '.join(map(str, self.grid_sizes))}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Places of a side of each stage's map; images and odd maps are filled up with zeros."""
        sizes = [-(-self.image_size // self.patch_size)]
        for _ in self.depths[1:]:
            sizes.append(-(-sizes[-1] // 2))
        return tuple(sizes)

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.widths[self.feature_stages[-1]]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image; every image is resized to `image_size`, so the arguments do not matter."""
        return self.grid_sizes[self.feature_stages[-1]] ** 2


def windows_of(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, D] -> [B * windows, size * size, D]; H and W are multiples of `size`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def map_of(windows: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """What `windows_of` took apart, [B, height, width, D]."""
    x = windows.reshape(-1, height // size, width // size, size, size, windows.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def relative_places(size: int) -> np.ndarray:
    """int [size * size, size * size]: which of the (2 size - 1) squared offsets lies between two places."""
    row, column = (axis.reshape(-1) for axis in np.indices((size, size)))
    rows = row[:, None] - row[None] + size - 1
    columns = column[:, None] - column[None] + size - 1
    return rows * (2 * size - 1) + columns


def apart(height: int, width: int, size: int, shift: int) -> np.ndarray:
    """bool [windows, size * size, size * size]: pairs that only the shift brought into one window."""

    def region(length):
        place = np.arange(length)
        return (place >= length - size).astype(int) + (place >= length - shift)

    regions = region(height)[:, None] * 3 + region(width)[None]
    regions = regions.reshape(height // size, size, width // size, size).transpose(0, 2, 1, 3)
    regions = regions.reshape(-1, size * size)
    return regions[:, :, None] != regions[:, None, :]


class WindowAttention(nn.Module):
    """Attention inside windows with a learned bias for every offset and head.

    Parameters q, k, v [D, H, C], o [H, C, D] and offsets [(2 window - 1) squared, H].
    """

    width: int
    num_heads: int
    window: int
    qkv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [M, T, D] of M windows, mask float32 [windows of one map, T, T] added to the logits -> [M, T, D]."""
        head_dim = self.width // self.num_heads

        def linear(name):
            axes, features = ("embed", "heads", "head_dim"), (self.num_heads, head_dim)
            return Linear(features, axes, use_bias=self.qkv_bias, dtype=self.dtype, name=name)

        q, k, v = (linear(name)(x) for name in "qkv")
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "heads"))
        offsets = self.param("offsets", init, ((2 * self.window - 1) ** 2, self.num_heads))
        bias = offsets.astype(jnp.float32)[relative_places(self.window)].transpose(2, 0, 1)
        logits = jnp.einsum("mqhc,mkhc->mhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
        logits = (logits + bias).reshape(-1, len(mask), *logits.shape[1:]) + mask[:, None]
        weights = jax.nn.softmax(logits, axis=-1).reshape(-1, *bias.shape).astype(self.dtype)
        h = jnp.einsum("mhqk,mkhc->mqhc", weights, v)
        axes = ("heads", "head_dim", "embed")
        return Linear((self.width,), axes, in_dims=2, use_bias=True, dtype=self.dtype, name="o")(h)


class SwinBlock(nn.Module):
    """x + attention in windows of norm(x), then x + mlp(norm(x))."""

    config: SwinConfig
    stage: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shifted: jax.Array) -> jax.Array:
        """x [B, H, W, D]; shifted, bool []: whether the windows lie half a window further -> [B, H, W, D]."""
        c, width, size = self.config, self.config.widths[self.stage], self.config.window_size
        height, breadth = x.shape[1:3]
        # A map that is one window wide is not shifted.
        shift = size // 2 if min(height, breadth) > size else 0
        h = LayerNorm(c.norm_eps, self.dtype, name="attn_norm")(x)
        h = jnp.pad(h, ((0, 0), (0, -height % size), (0, -breadth % size), (0, 0)))
        full = h.shape[1:3]
        mask = APART * apart(*full, size, shift).astype(np.float32)
        if shift:
            h = jnp.where(shifted, jnp.roll(h, (-shift, -shift), (1, 2)), h)
        attn = WindowAttention(
            width, c.num_heads[self.stage], size, c.qkv_bias, self.dtype, name="attn"
        )
        h = map_of(attn(windows_of(h, size), jnp.where(shifted, mask, 0.0)), size, *full)
        if shift:
            h = jnp.where(shifted, jnp.roll(h, (shift, shift), (1, 2)), h)
        x = constrain(x + h[:, :height, :breadth], "batch", None, None, "act_embed")
        mlp = MLP(width, int(c.mlp_ratio * width), c.activation, use_bias=True, dtype=self.dtype, name="mlp")
        h = mlp(LayerNorm(c.norm_eps, self.dtype, name="mlp_norm")(x))
        return constrain(x + h, "batch", None, None, "act_embed")


class Merging(nn.Module):
    """2 x 2 places become one of twice the width: their channels side by side, a norm, a linear map."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, D] -> [B, ceil(H / 2), ceil(W / 2), 2 D]; odd maps are filled up with zeros."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        parts = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        x = LayerNorm(MAP_NORM_EPS, self.dtype, name="norm")(jnp.concatenate(parts, axis=-1))
        return Linear((self.width,), ("feature", "embed"), dtype=self.dtype, name="out")(x)


class Swin(nn.Module):
    """Images to maps. Parameters stem, stem_norm, position_embedding; stage_{i}; merge_{i} from stage 1 on; norm.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: SwinConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c, axes = self.config, ("patch", "patch", None, "embed")
        self.stem = Linear((c.width,), axes, in_dims=3, use_bias=True, dtype=self.dtype)
        self.stem_norm = LayerNorm(MAP_NORM_EPS, self.dtype)
        if c.absolute_positions:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
            self.position_embedding = self.param("position_embedding", init, (c.grid_sizes[0] ** 2, c.width))
        self.merge = [None, *(Merging(width, self.dtype) for width in c.widths[1:])]
        self.norm = LayerNorm(c.norm_eps, self.dtype)
        self.block = [SwinBlock(c, stage, self.dtype, parent=None) for stage in range(len(c.widths))]
        self.stage = [self._stack(stage) for stage in range(len(c.widths))]

    def _stack(self, stage: int) -> Any:
        """Parameters of a stage's blocks."""
        c, name = self.config, f"stage_{stage}"
        if not self.is_initializing():
            return self.get_variable("params", name)
        dummy = jnp.zeros((1, c.window_size, c.window_size, c.widths[stage]), self.dtype)
        return self.param(name, init_stack(self.block[stage], c.depths[stage], dummy, False))

    def maps(self, images: jax.Array) -> list[jax.Array]:
        """Images [B, H, W, 3] -> the map [B, h, w, D] of every stage; the last one is normed."""
        c, size = self.config, self.config.patch_size
        images = constrain(images, "batch", None, None, None)
        images = jnp.pad(images, ((0, 0), (0, -images.shape[1] % size), (0, -images.shape[2] % size), (0, 0)))
        height, breadth = images.shape[1] // size, images.shape[2] // size
        x = self.stem_norm(self.stem(patches_of(images, size)))
        if c.absolute_positions:
            if (height, breadth) != (c.grid_sizes[0],) * 2:
                raise ValueError(
                    f"images of {height} x {breadth} patches, but the encoder has positions of "
                    f"{c.grid_sizes[0]} x {c.grid_sizes[0]} ({c.image_size} x {c.image_size} pixels)"
                )
            x = x + self.position_embedding.astype(self.dtype)
        found = self.stages(x.reshape(-1, height, breadth, c.width))
        found[-1] = self.norm(found[-1])
        return found

    def stages(self, x: jax.Array) -> list[jax.Array]:
        """Embedded patches [B, H, W, D] -> the map [B, h, w, D] of every stage, none normed.

        Raises:
            ValueError: a map that is smaller than a window.
        """
        c, found = self.config, []
        for stage in range(len(c.widths)):
            if stage:
                x = self.merge[stage](x)
            if min(x.shape[1:3]) < c.window_size:
                raise ValueError(
                    f"a map of {x.shape[1]} x {x.shape[2]} is smaller than a window of {c.window_size}: small image"
                )
            x = self._blocks(stage, x)
            found.append(x)
        return found

    def _blocks(self, stage: int, x: jax.Array) -> jax.Array:
        def apply(params, x, shifted):
            return self.block[stage].apply({"params": params}, x, shifted), shifted

        # What differs from block to block goes along the stack as a cache would.
        shifted = jnp.arange(self.config.depths[stage]) % 2 == 1
        return run_stack(apply, self.stage[stage], x, shifted, remat=self.remat)[0]

    def run(self, images: jax.Array) -> dict[str, jax.Array]:
        """The whole network on images [B, H, W, 3] of any size whose maps hold a window.

        Returns:
            "last_hidden_state" [B, N, D]; "pooled" [B, D], the mean.
        """
        x = self.maps(images)[-1]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"last_hidden_state": x, "pooled": x.astype(jnp.float32).mean(1).astype(self.dtype)}

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, D].

        Raises:
            ValueError: images that are not of `image_size`.
        """
        maps = self.maps(images_of(media, self.config.image_size))
        return media_of(media, maps, self.config.feature_stages)

    def create(self, images: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        return self.run(images)
