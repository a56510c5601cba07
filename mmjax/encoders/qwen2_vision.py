"""The image and video towers of Qwen2-VL to Qwen3-VL, and Pixtral: patches of many images and frames in one row.

| family | options beside the sizes |
|---|---|
| Qwen2-VL | the defaults |
| Qwen2.5-VL | norm "rms", gated, activation "silu", window, full_layers |
| Qwen3-VL | activation "gelu_tanh", patch_bias, position_grid, feature_layers |
| Pixtral | temporal_patch_size 1, norm "rms", gated, activation "silu" or "gelu", no bias, input_norm, one_series |

Wang et al., 2024 ("Qwen2-VL"); Bai et al., 2025 ("Qwen2.5-VL", "Qwen3-VL"); Agrawal et al., 2024 ("Pixtral 12B").
Queries and keys are rotated, half of a head's channel pairs by the row of a patch, half by its column.
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.packed import block_places, item_mask
from mmjax.encoders.positions import read_grid
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import check_activation
from mmjax.nn.norms import NORMS
from mmjax.nn.rotary import rotation
from mmjax.nn.stack import init_stack, run_stack


@dataclasses.dataclass(frozen=True)
class Qwen2VisionConfig:
    """Sizes and options of a tower.

    Attributes:
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        patch_size, temporal_patch_size: pixels of a side, and frames, of a patch.
        merge_size: side of the squares of patches that the projector joins; patches come square by square.
        activation, gated: of the MLPs.
        norm, norm_eps: "layer" or "rms".
        rope_theta: base of the rotary frequencies.
        window: side in patches of the windows within which the other layers than `full_layers` attend; None: all
            layers attend within a whole frame.
        full_layers: the layers that attend within a whole frame where there are windows.
        patch_bias: whether the map of patches has a bias.
        position_grid: side of a learned grid of positions, which is stretched over every frame and added; None: no
            such grid.
        feature_layers: which hidden states the features are, as indices of (input of block 0, output of block 0,
            ..., output of block L-1); several are concatenated over channels.
        bias: whether the maps of the blocks have biases.
        input_norm: whether a norm stands before the blocks.
        one_series: whether rows and columns take turns in one series of rotary frequencies, not one series each.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    activation: str = "quick_gelu"
    gated: bool = False
    norm: str = "layer"
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    patch_bias: bool = False
    position_grid: int | None = None
    feature_layers: tuple[int, ...] = (-1,)
    bias: bool = True
    input_norm: bool = False
    one_series: bool = False

    kind: ClassVar[str] = "qwen2_vision"
    packed: ClassVar[bool] = True

    def __post_init__(self):
        check_activation("qwen2_vision.activation", self.activation)
        check_choice("qwen2_vision.norm", self.norm, tuple(NORMS))
        for name in ("num_layers", "patch_size", "temporal_patch_size", "merge_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"qwen2_vision.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % (4 * self.num_heads):
            raise ConfigError(
                f"qwen2_vision.width {self.width} over num_heads {self.num_heads} is not a multiple of 4: rows and "
                "columns each turn pairs of channels"
            )
        if self.window is not None and (self.window < 1 or self.window % self.merge_size):
            raise ConfigError(
                f"qwen2_vision.window {self.window} is not a positive multiple of merge_size {self.merge_size}"
            )
        for layer in self.full_layers:
            if self.window is None or not 0 <= layer < self.num_layers:
                raise ConfigError(
                    f"qwen2_vision.full_layers names layer {layer}; there are {self.num_layers} layers and "
                    f"window is {self.window}"
                )

        if self.position_grid is not None and self.position_grid < 1:
            raise ConfigError(f"qwen2_vision.position_grid must be at least 1 or None, got {self.position_grid}")
        if not self.feature_layers:
            raise ConfigError("qwen2_vision.feature_layers must name at least one hidden state")
        for layer in self.feature_layers:
            if not -self.num_layers - 1 <= layer <= self.num_layers:
                raise ConfigError(
                    f"qwen2_vision.feature_layers: {layer} is not among the {self.num_layers + 1} hidden states"
                )

    @property
    def patch_width(self) -> int:
        """Numbers of one raw patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.width * len(self.feature_layers)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of the smallest raw item, (patches, numbers of a patch): one square that the projector joins."""
        return (self.merge_size**2, self.patch_width)

    @property
    def block(self) -> BlockConfig:
        """The config of one block."""
        return BlockConfig(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            activation=self.activation,
            norm=self.norm,
            norm_eps=self.norm_eps,
            gated=self.gated,
            qkv_bias=self.bias,
            out_bias=self.bias,
            mlp_bias=self.bias,
        )

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item, one a patch.

        Args:
            grid: (time, height, width) of the item in patches; the smallest item unless given.
            original_size: does not matter.

        Raises:
            ConfigError: a grid whose height or width is no multiple of merge_size.
        """
        if grid is None:
            return self.merge_size**2
        time, height, width = map(int, grid)
        if height % self.merge_size or width % self.merge_size:
            raise ConfigError(
                f"qwen2_vision: a frame of {height} x {width} patches is no whole number of squares of "
                f"{self.merge_size} x {self.merge_size}"
            )
        return time * height * width


class Qwen2Vision(nn.Module):
    """Packed patches to features, one a patch.

    Patches see their own frame of their own item, or in layers with windows their own window of it. Both are masks
    over all N patches of a row: every layer costs 4 N^2 D operations and its logits H N^2 numbers, windows or not.
    Published code sorts the patches by window instead and attends to each window alone; results are equal.

    Parameters: patch_embed {kernel [frames, side, side, 3, D], bias}, position_embedding [side * side, D], pre_norm,
    blocks/... as in `Block`.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: Qwen2VisionConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        axes = ("patch", "patch", "patch", None, "embed")
        self.patch_embed = Linear((c.width,), axes, in_dims=4, use_bias=c.patch_bias, dtype=self.dtype)
        if c.position_grid:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
            self.position_embedding = self.param("position_embedding", init, (c.position_grid**2, c.width))
        if c.input_norm:
            self.pre_norm = c.block.norms.module(self.dtype)
        self.block = Block(c.block, self.dtype, parent=None)
        if self.is_initializing():
            dummy = jnp.zeros((1, 1, c.width), self.dtype)
            self.blocks = self.param("blocks", init_stack(self.block, c.num_layers, dummy))
        else:
            self.blocks = self.get_variable("params", "blocks")

    def _embed(self, patches: jax.Array) -> jax.Array:
        """Raw patches [B, N, channels * frames * side * side] -> what block 0 takes, [B, N, D]."""
        c = self.config
        if patches.shape[-1] != c.patch_width:
            raise ValueError(
                f"patches have {patches.shape[-1]} numbers each; the encoder takes {c.patch_width}: 3 channels of "
                f"{c.temporal_patch_size} frames of {c.patch_size} x {c.patch_size} pixels"
            )
        x = patches.reshape(*patches.shape[:2], 3, c.temporal_patch_size, c.patch_size, c.patch_size)
        return self.patch_embed(jnp.moveaxis(x, 2, -1))

    def _features(self, patches: jax.Array, segments: jax.Array, grid: jax.Array) -> jax.Array:
        c = self.config
        row, column, rows, columns, start = block_places(segments, grid, c.merge_size)
        half = c.width // c.num_heads // 2
        # In one series, each frequency of columns is the one of rows before it times theta^(-1 / half).
        slower = c.rope_theta ** (-1 / half) if c.one_series else 1.0
        turns = [rotation(place, half, c.rope_theta) for place in (row, column * slower)]
        angles = tuple(jnp.concatenate(pair, axis=-1) for pair in zip(*turns, strict=True))

        def group(first):
            return jnp.where(segments > 0, 1 + start + first, 0)

        # A frame or window is known by its first patch, as if the rows of the frame followed each other.
        frames = windows = group(0)
        if c.window is not None:
            windows = group(row // c.window * c.window * columns + column // c.window * c.window)
        def apply(layer, x, cache):
            params, near = layer
            seen = item_mask(frames if c.window is None else jnp.where(near, windows, frames))
            return self.block.apply({"params": params}, x, seen, angles, cache)

        x = self._embed(patches)
        if c.position_grid:
            places = row, column, rows, columns
            x = x + read_grid(self.position_embedding, *places, "bilinear_corners").astype(self.dtype)
        if c.input_norm:
            x = self.pre_norm(x)
        x = constrain(x, "batch", None, "act_embed")
        near = [layer not in c.full_layers for layer in range(c.num_layers)]
        unrolled = isinstance(self.blocks, tuple)
        layers = tuple(zip(self.blocks, near, strict=True)) if unrolled else [self.blocks, jnp.array(near)]
        wanted = [layer % (c.num_layers + 1) for layer in c.feature_layers]
        found, at = {0: x}, 0
        for stop in sorted(set(wanted) - {0}):
            x, _ = run_stack(apply, layers, x, remat=self.remat, start=at, stop=stop)
            found[stop], at = x, stop
        return jnp.concatenate([found[layer] for layer in wanted], axis=-1)

    def __call__(self, media: Media) -> Media:
        """Patches [B, N, F] -> features [B, N, feature_width], in the same order.

        Args:
            media: stage "raw", with segment_ids [B, N] and grid [B, I, 3].

        Raises:
            ValueError: segment_ids or grid is missing, or the patches have another size.
        """
        if media.segment_ids is None or media.grid is None:
            raise ValueError("packed patches need segment_ids and grid")
        x = self._features(media.values, jnp.asarray(media.segment_ids), jnp.asarray(media.grid))
        return media.replace(values=x, stage="encoded")

    def run(self, values: jax.Array, mask: jax.Array, grid: jax.Array) -> dict[str, jax.Array]:
        """The whole tower on one item a row.

        Args:
            values: patches [B, N, F].
            mask: bool [B, N], which patches are no padding.
            grid: int [B, 3], (time, height, width) of each item in patches.

        Returns:
            "last_hidden_state" [B, N, feature_width].
        """
        return {"last_hidden_state": self._features(values, mask.astype(jnp.int32), grid[:, None])}

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. values [B, N, F] of square items."""
        side = math.isqrt(values.shape[1])
        grid = jnp.tile(jnp.array([[1, side, side]]), (len(values), 1))
        return self.run(values, jnp.ones(values.shape[:2], bool), grid)
