"""ResNet, with basic or bottleneck layers: images to a pyramid of feature maps.

He et al., 2016, "Deep residual learning for image recognition"; the stride stands in the 3 x 3 convolution of
a bottleneck unless told otherwise (v1.5). Batch norms use their running statistics, in training too.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.data.contracts import Media
from mmjax.distributed.rules import constrain
from mmjax.encoders.efficientnet import ConvNorm
from mmjax.encoders.maps import check_stages, images_of, media_of
from mmjax.nn.stack import init_stack, run_stack

# A bottleneck is this many times narrower than what goes in and out.
REDUCTION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes and options of a ResNet.

    Attributes:
        image_size: pixels of a side; features are counted for it.
        stem_width: channels of the first convolution.
        widths, depths: channels and layers of each stage.
        bottleneck: whether layers are 1 x 1, 3 x 3, 1 x 1 (ResNet-50 and deeper), not 3 x 3, 3 x 3.
        downsample_in_first_stage: whether the first stage halves its map too.
        downsample_in_bottleneck: whether the stride stands in the first convolution of a bottleneck.
        norm_eps: of the batch norms.
        feature_stages: whose maps the features are, from 0; the last one named gives the features, the others
            go to `extra_features`.
    """

    image_size: int = 224
    stem_width: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    norm_eps: float = 1e-5
    feature_stages: tuple[int, ...] = (-1,)

    kind: ClassVar[str] = "resnet"

    def __post_init__(self):
        check_stages("resnet", self.feature_stages, widths=self.widths, depths=self.depths)

    def stride(self, stage: int) -> int:
        """Stride of a stage's first layer."""
        return 2 if stage or self.downsample_in_first_stage else 1

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Places of a side of each stage's map."""
        # The stem halves twice.
        size, sizes = -(-self.image_size // 4), []
        for stage in range(len(self.widths)):
            size = -(-size // self.stride(stage))
            sizes.append(size)
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

    def convolutions(self, stage: int, first: bool) -> list[tuple[int, int, int]]:
        """(channels, kernel, stride) of each convolution of a stage's first layer, or of its others."""
        width, stride = self.widths[stage], self.stride(stage) if first else 1
        if not self.bottleneck:
            return [(width, 3, stride), (width, 3, 1)]
        narrow = width // REDUCTION
        strides = (stride, 1) if self.downsample_in_bottleneck else (1, stride)
        return [(narrow, 1, strides[0]), (narrow, 3, strides[1]), (width, 1, 1)]

    def has_shortcut(self, stage: int) -> bool:
        """Whether a stage's first layer needs a convolution beside its residual."""
        before = self.widths[stage - 1] if stage else self.stem_width
        return before != self.widths[stage] or self.stride(stage) != 1


class ResNetLayer(nn.Module):
    """Convolutions with batch norms and a residual. Parameters conv_{i}, and shortcut where it is needed."""

    config: ResNetConfig
    stage: int
    first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, in] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        c = self.config

        def conv(name, features, kernel, stride):
            options = {"eps": c.norm_eps, "padding": kernel // 2, "dtype": self.dtype}
            return ConvNorm(features, kernel, stride, name=name, **options)

        shapes = c.convolutions(self.stage, self.first)
        h = x
        for number, shape in enumerate(shapes):
            h = conv(f"conv_{number}", *shape)(h)
            if number < len(shapes) - 1:
                h = jax.nn.relu(h)
        if self.first and c.has_shortcut(self.stage):
            x = conv("shortcut", c.widths[self.stage], 1, c.stride(self.stage))(x)
        return constrain(jax.nn.relu(h + x), "batch", None, None, "act_embed")


class ResNet(nn.Module):
    """Images to maps. Parameters stem; stage_{i}_first, and stage_{i}_rest where a stage has more layers.

    Attributes:
        config: sizes and options.
        dtype: compute dtype.
        remat: rematerialisation policy of the layers behind each stage's first.
    """

    config: ResNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def maps(self, images: jax.Array) -> list[jax.Array]:
        """Images [B, H, W, 3] -> the map [B, h, w, D] of every stage."""
        c = self.config
        stem = ConvNorm(c.stem_width, 7, 2, eps=c.norm_eps, padding=3, dtype=self.dtype, name="stem")
        x = jax.nn.relu(stem(constrain(images, "batch", None, None, None)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        found = []
        for stage, depth in enumerate(c.depths):
            x = ResNetLayer(c, stage, True, self.dtype, name=f"stage_{stage}_first")(x)
            if depth > 1:
                x = self._rest(stage, depth - 1, x)
            found.append(x)
        return found

    def _rest(self, stage: int, layers: int, x: jax.Array) -> jax.Array:
        layer, name = ResNetLayer(self.config, stage, False, self.dtype, parent=None), f"stage_{stage}_rest"
        if self.is_initializing():
            stack = self.param(name, init_stack(layer, layers, jnp.zeros((1, 1, 1, x.shape[-1]), self.dtype)))
        else:
            stack = self.get_variable("params", name)

        def apply(params, x, cache):
            return layer.apply({"params": params}, x), cache

        return run_stack(apply, stack, x, remat=self.remat)[0]

    def run(self, images: jax.Array) -> dict[str, jax.Array]:
        """The whole network on images [B, H, W, 3] of any size.

        Returns:
            "last_hidden_state" [B, h, w, D]; "pooled" [B, 1, 1, D], the mean.
        """
        x = self.maps(images)[-1]
        pooled = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        return {"last_hidden_state": x, "pooled": pooled}

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
