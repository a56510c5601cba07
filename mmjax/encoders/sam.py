"""SAM's image encoder: attention in windows, in a few layers over the whole map, with decomposed relative positions.

Kirillov et al., 2023, "Segment anything"; Li et al., 2022, "Exploring plain vision transformer backbones for object
detection" (the layers), "MViTv2" (the positions: an offset's worth is one of its rows and one of its columns).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.maps import images_of, media_of
from mmjax.encoders.swin import map_of, windows_of
from mmjax.encoders.vit import patches_of
from mmjax.nn.attention import attend
from mmjax.nn.full_conv import Conv
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import REMAT, init_stack, run_stack

# Of the norms behind the last block, whatever the blocks have.
NECK_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class SamEncoderConfig:
    """Sizes and options of SAM's image encoder.

    Attributes:
        image_size, patch_size: pixels of a side.
        width, num_layers, num_heads, mlp_width: D, L, H, F.
        out_width: channels of the features, behind the neck.
        window_size: places of a side that attend to each other; maps are filled up with zeros to whole windows.
        global_layers: which layers attend over the whole map instead.
        activation, norm_eps: of the blocks.
        qkv_bias: whether q, k and v have biases.
        absolute_positions: whether patches have learned positions.
        relative_positions: whether attention's logits have learned terms by rows and by columns.
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    out_width: int = 256
    window_size: int = 14
    global_layers: tuple[int, ...] = (2, 5, 8, 11)
    activation: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    absolute_positions: bool = True
    relative_positions: bool = True

    kind: ClassVar[str] = "sam_encoder"

    def __post_init__(self):
        check_activation("sam_encoder.activation", self.activation)
        if self.width % self.num_heads:
            raise ConfigError(f"sam_encoder.width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"sam_encoder.image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )
        if sorted(set(self.global_layers)) != list(self.global_layers):
            raise ConfigError(f"sam_encoder.global_layers {self.global_layers} must grow")
        for layer in self.global_layers:
            if not 0 <= layer < self.num_layers:
                raise ConfigError(f"sam_encoder.global_layers: {layer} is not among the {self.num_layers} layers")
        if self.window_size < 1 and len(self.global_layers) < self.num_layers:
            raise ConfigError(
                f"sam_encoder.window_size {self.window_size}: the layers that are not in global_layers need windows"
            )

    @property
    def grid_size(self) -> int:
        """Places of a side of the map; pixels that no whole patch covers are dropped."""
        return self.image_size // self.patch_size

    @property
    def window_layers(self) -> tuple[int, ...]:
        """Which layers attend in windows."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.global_layers)

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.out_width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image; every image is padded to `image_size`, so the arguments do not matter."""
        return self.grid_size**2


class RelativeAttention(nn.Module):
    """Attention on a square of places, whose logits have q's products with a vector a row and one a column of offset.

    Parameters q, k, v [D, H, C], o [H, C, D] and, with relative positions, rows, columns [2 side - 1, C].
    """

    config: SamEncoderConfig
    side: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[M, side * side, D] -> the same."""
        c, side = self.config, self.side
        heads, width = c.num_heads, c.width // c.num_heads

        def linear(name):
            axes = ("embed", "heads", "head_dim")
            return Linear((heads, width), axes, use_bias=c.qkv_bias, dtype=self.dtype, name=name)

        q, k, v = (linear(name)(x) for name in "qkv")
        bias = None
        if c.relative_positions:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "head_dim"))
            offset = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
            rows, columns = (
                self.param(name, init, (2 * side - 1, width)).astype(self.dtype)[offset] for name in ("rows", "columns")
            )
            square = q.reshape(-1, side, side, heads, width)
            down = jnp.einsum("bijhc,ikc->bhijk", square, rows, preferred_element_type=jnp.float32)
            right = jnp.einsum("bijhc,jkc->bhijk", square, columns, preferred_element_type=jnp.float32)
            bias = down[..., :, None] + right[..., None, :]
            bias = bias.reshape(-1, heads, side * side, side * side)
        h = attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), None, bias=bias)
        axes = ("heads", "head_dim", "embed")
        return Linear((c.width,), axes, in_dims=2, use_bias=True, dtype=self.dtype, name="o")(h)


class SamBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on maps."""

    config: SamEncoderConfig
    windowed: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, D] -> the same."""
        c, (height, width) = self.config, x.shape[1:3]
        h = LayerNorm(c.norm_eps, self.dtype, name="attn_norm")(x)
        side = c.window_size if self.windowed else c.grid_size
        # Without windows the map is one of its own size. Places that fill a window up are attended to like others.
        h = jnp.pad(h, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        full = h.shape[1:3]
        h = RelativeAttention(c, side, self.dtype, name="attn")(windows_of(h, side))
        x = x + map_of(h, side, *full)[:, :height, :width]
        x = constrain(x, "batch", None, None, "act_embed")
        mlp = MLP(c.width, c.mlp_width, c.activation, use_bias=True, dtype=self.dtype, name="mlp")
        x = x + mlp(LayerNorm(c.norm_eps, self.dtype, name="mlp_norm")(x))
        return constrain(x, "batch", None, None, "act_embed")


class SamEncoder(nn.Module):
    """Images to maps.

    Parameters patch_embed, position_embedding [g, g, D], blocks (those with windows, stacked), global_{layer} (the
    few without, whose positions have other shapes), neck_1, neck_1_norm, neck_2, neck_2_norm.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: SamEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def maps(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] of `image_size` -> [B, g, g, out_width].

        Raises:
            ValueError: images of another size.
        """
        c, grid = self.config, self.config.grid_size
        if images.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels, but the encoder has positions of "
                f"{grid} x {grid} patches ({c.image_size} x {c.image_size} pixels)"
            )
        axes = ("patch", "patch", None, "embed")
        embed = Linear((c.width,), axes, in_dims=3, use_bias=True, dtype=self.dtype, name="patch_embed")
        x = embed(patches_of(constrain(images, "batch", None, None, None), c.patch_size))
        x = x.reshape(-1, grid, grid, c.width)
        if c.absolute_positions:
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
            x = x + self.param("position_embedding", init, (grid, grid, c.width)).astype(self.dtype)
        x = self._blocks(x)
        for number, size in ((1, 1), (2, 3)):
            conv = Conv(c.out_width, size, padding=size // 2, use_bias=False, dtype=self.dtype, name=f"neck_{number}")
            x = LayerNorm(NECK_NORM_EPS, self.dtype, name=f"neck_{number}_norm")(conv(x))
        return x

    def _blocks(self, x: jax.Array) -> jax.Array:
        c = self.config
        block, stack = SamBlock(c, True, self.dtype, parent=None), None
        if c.window_layers:
            if self.is_initializing():
                dummy = jnp.zeros((1, c.window_size, c.window_size, c.width), self.dtype)
                stack = self.param("blocks", init_stack(block, len(c.window_layers), dummy))
            else:
                stack = self.get_variable("params", "blocks")

        def run(x, start, stop):
            apply = lambda params, x, cache: (block.apply({"params": params}, x), cache)
            return run_stack(apply, stack, x, remat=self.remat, start=start, stop=stop)[0] if stop > start else x

        whole = SamBlock
        if self.remat != "none":
            whole = nn.remat(SamBlock, policy=REMAT[self.remat], prevent_cse=True)
        at = 0
        for number, layer in enumerate(c.global_layers):
            x, at = run(x, at, layer - number), layer - number
            x = whole(c, False, self.dtype, name=f"global_{layer}")(x)
        return run(x, at, len(c.window_layers))

    def run(self, images: jax.Array) -> dict[str, jax.Array]:
        """The whole encoder on images [B, H, W, 3] -> "last_hidden_state" [B, g, g, out_width]."""
        return {"last_hidden_state": self.maps(images)}

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, out_width].

        Raises:
            ValueError: images that are not of `image_size`.
        """
        return media_of(media, [self.maps(images_of(media, self.config.image_size))], (0,))

    def create(self, images: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        return self.run(images)
