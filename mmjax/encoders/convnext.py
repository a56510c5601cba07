"""ConvNeXt and, with response_norm, ConvNeXt V2: images to a pyramid of feature maps.

Liu et al., 2022, "A ConvNet for the 2020s"; Woo et al., 2023, "ConvNeXt V2" (global response normalisation).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.efficientnet import depthwise
from mmjax.encoders.maps import check_stages, images_of, media_of
from mmjax.encoders.vit import patches_of
from mmjax.nn.linear import Linear, fan_in_normal
from mmjax.nn.mlp import ACTIVATIONS, check_activation
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import init_stack, run_stack

# The norms between the maps have this epsilon in every published model; only the last one's is an option.
MAP_NORM_EPS = 1e-6
WINDOW = 7


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Sizes and options of a ConvNeXt.

    Attributes:
        image_size: pixels of a side; features are counted for it.
        patch_size: pixels of a side that become one place of the first map.
        widths, depths: D and blocks of each stage; every stage but the first halves the map.
        activation: of the blocks.
        norm_eps: of the norm behind the pooled vector.
        layer_scale: value at which learned scales on what the blocks add start, or None for no scales.
        response_norm: whether the blocks have global response normalisation (V2).
        feature_stages: whose maps the features are, from 0; the last one named gives the features, the others
            go to `extra_features`.
    """

    image_size: int = 224
    patch_size: int = 4
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    activation: str = "gelu"
    norm_eps: float = 1e-12
    layer_scale: float | None = 1e-6
    response_norm: bool = False
    feature_stages: tuple[int, ...] = (-1,)

    kind: ClassVar[str] = "convnext"

    def __post_init__(self):
        check_activation("convnext.activation", self.activation)
        check_stages("convnext", self.feature_stages, widths=self.widths, depths=self.depths)
        if not self.grid_sizes[-1]:
            raise ConfigError(
                f"convnext.image_size {self.image_size} is too small for patch_size {self.patch_size} "
                f"and {len(self.widths)} stages"
            )

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Places of a side of each stage's map; what no whole window covers is dropped."""
        return tuple(self.image_size // self.patch_size // 2**stage for stage in range(len(self.widths)))

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


class ResponseNorm(nn.Module):
    """scale * x * n + bias + x, where n is each channel's norm over the map against the mean of all channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, D] -> [B, H, W, D]; scale and bias [D] start at zero."""

        def vector(name):
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("feature",))
            return self.param(name, init, x.shape[-1:]).astype(jnp.float32)

        scale, bias = vector("scale"), vector("bias")
        wide = x.astype(jnp.float32)
        energy = jnp.sum(jnp.square(wide), axis=(1, 2), keepdims=True)
        # The root has no gradient at zero.
        norm = jnp.sqrt(jnp.maximum(energy, jnp.finfo(jnp.float32).tiny))
        norm = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        return (scale * (wide * norm) + bias + wide).astype(self.dtype)


class ConvNeXtBlock(nn.Module):
    """A wide depthwise convolution, a norm, an MLP of four times the width, a residual."""

    config: ConvNeXtConfig
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, D] -> [B, H, W, D]."""
        c, width = self.config, self.width

        def leaf(name, init, shape, axes):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape).astype(self.dtype)

        def linear(name, features, axes):
            return Linear((features,), axes, use_bias=True, dtype=self.dtype, name=name)

        shape = (WINDOW, WINDOW, 1, width)
        kernel = leaf("kernel", fan_in_normal(shape[:3]), shape, ("patch", "patch", None, "feature"))
        bias = leaf("bias", nn.initializers.zeros, (width,), ("feature",))
        h = depthwise(x, kernel, 1) + bias
        h = LayerNorm(MAP_NORM_EPS, self.dtype, name="norm")(h)
        h = ACTIVATIONS[c.activation](linear("up", 4 * width, ("embed", "mlp"))(h))
        if c.response_norm:
            h = ResponseNorm(self.dtype, name="response_norm")(h)
        h = linear("down", width, ("mlp", "embed"))(h)
        if c.layer_scale is not None:
            h = h * leaf("scale", nn.initializers.constant(c.layer_scale), (width,), ("feature",))
        return constrain(x + h, "batch", None, None, "act_embed")


class ConvNeXt(nn.Module):
    """Images to maps. Parameters stem, stem_norm; down_{i}_norm, down_{i} from stage 1 on; stage_{i}; norm.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the blocks.
    """

    config: ConvNeXtConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        axes = ("patch", "patch", None, "embed")

        def window(width):
            return Linear((width,), axes, in_dims=3, use_bias=True, dtype=self.dtype)

        self.stem, self.stem_norm = window(c.widths[0]), LayerNorm(MAP_NORM_EPS, self.dtype)
        for stage, width in enumerate(c.widths):
            if stage:
                setattr(self, f"down_{stage}_norm", LayerNorm(MAP_NORM_EPS, self.dtype))
                setattr(self, f"down_{stage}", window(width))
            setattr(self, f"stage_{stage}", self._stack(stage))
        self.norm = LayerNorm(c.norm_eps, self.dtype)

    def _block(self, stage: int) -> ConvNeXtBlock:
        return ConvNeXtBlock(self.config, self.config.widths[stage], self.dtype, parent=None)

    def _stack(self, stage: int):
        name, width = f"stage_{stage}", self.config.widths[stage]
        if not self.is_initializing():
            return self.get_variable("params", name)
        dummy = jnp.zeros((1, 1, 1, width), self.dtype)
        return self.param(name, init_stack(self._block(stage), self.config.depths[stage], dummy))

    def maps(self, images: jax.Array) -> list[jax.Array]:
        """Images [B, H, W, 3] -> the map [B, h, w, D] of every stage."""
        c = self.config
        x = self._window(self.stem, constrain(images, "batch", None, None, None), c.patch_size)
        x = self.stem_norm(x)
        found = []
        for stage in range(len(c.widths)):
            if stage:
                x = self._window(getattr(self, f"down_{stage}"), getattr(self, f"down_{stage}_norm")(x), 2)
            block = self._block(stage)

            def apply(params, x, cache, block=block):
                return block.apply({"params": params}, x), cache

            x, _ = run_stack(apply, getattr(self, f"stage_{stage}"), x, remat=self.remat)
            found.append(x)
        return found

    def _window(self, linear: Linear, x: jax.Array, size: int) -> jax.Array:
        """A convolution whose stride is its size, [B, H, W, in] -> [B, H // size, W // size, out]."""
        if min(x.shape[1:3]) < size:
            raise ValueError(f"a map of {x.shape[1]} x {x.shape[2]} has no window of {size} x {size}: small image")
        patches = linear(patches_of(x, size))
        return patches.reshape(x.shape[0], x.shape[1] // size, x.shape[2] // size, -1)

    def run(self, images: jax.Array) -> dict[str, jax.Array]:
        """The whole network on images [B, H, W, 3] of any size.

        Returns:
            "last_hidden_state" [B, h, w, D]; "pooled" [B, D], the normed mean.
        """
        x = self.maps(images)[-1]
        pooled = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        return {"last_hidden_state": x, "pooled": self.norm(pooled)}

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
