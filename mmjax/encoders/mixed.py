"""Several image encoders that look at the same image, their features side by side on channels.

Lin et al., 2023, "SPHINX: The joint mixing of weights, tasks, and visual embeddings"; Tong et al., 2024, "Eyes
wide shut?" (features of CLIP beside those of DINOv2). Encoders of different kinds see different things: language
(CLIP), places and shapes (DINOv2), textures (ConvNeXt).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.convnext import ConvNeXt, ConvNeXtConfig
from mmjax.encoders.maps import images_of, media_of
from mmjax.encoders.resnet import ResNet, ResNetConfig
from mmjax.encoders.swin import Swin, SwinConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.nn.resize import resize

PartConfig = ViTConfig | ConvNeXtConfig | ResNetConfig | SwinConfig
PARTS: dict[type, Callable[..., nn.Module]] = {
    ViTConfig: ViT,
    ConvNeXtConfig: ConvNeXt,
    ResNetConfig: ResNet,
    SwinConfig: Swin,
}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """(pixel - mean) / std of each channel, pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class MixedEncoderConfig:
    """Which encoders, and the grid that all their features are brought to.

    Attributes:
        encoders: name -> encoder, in the order of their channels; each must give the features of a square
            grid and nothing else, see `ViTConfig.feature_strategy`.
        image_size: pixels of a side of the images that come; each encoder gets them in its own size.
        grid_size: places of a side of the grid of the features.
        normalization: what was done to the images that come.
        normalizations: name -> what that encoder was trained with, where it is something else.
    """

    encoders: dict[str, PartConfig]
    image_size: int
    grid_size: int
    normalization: Normalization | None = None
    normalizations: dict[str, Normalization] = dataclasses.field(default_factory=dict)

    kind: ClassVar[str] = "mixed"

    def __post_init__(self):
        if not self.encoders:
            raise ConfigError("mixed.encoders must name at least one encoder")
        if self.grid_size < 1:
            raise ConfigError(f"mixed.grid_size must be at least 1, got {self.grid_size}")
        for name, config in self.encoders.items():
            side, count = side_of(config), config.num_tokens()
            if side**2 != count:
                raise ConfigError(
                    f"mixed.encoders.{name} gives {count} features, its grid has {side} x {side}: leave out "
                    'class token and registers with feature_strategy "patches"'
                )
        for name in self.normalizations:
            if name not in self.encoders:
                raise ConfigError(f"mixed.normalizations.{name}: encoders are {', '.join(self.encoders)}")
        if self.normalizations and self.normalization is None:
            raise ConfigError("mixed.normalizations need normalization: what was done to the images that come")

    @property
    def feature_width(self) -> int:
        """Channels of the features, of all encoders together."""
        return sum(config.feature_width for config in self.encoders.values())

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3)."""
        return (self.image_size, self.image_size, 3)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image; every image is resized to `image_size`, so the arguments do not matter."""
        return self.grid_size**2


def side_of(config: PartConfig) -> int:
    """Places of a side of the grid of an encoder's features."""
    return config.grid_size if isinstance(config, ViTConfig) else config.grid_sizes[config.feature_stages[-1]]


class MixedEncoder(nn.Module):
    """Images to features of several encoders. Parameters: those of each encoder under its name.

    Attributes:
        config: the encoders.
        dtype: compute dtype.
        remat: rematerialisation policy of their blocks.
    """

    config: MixedEncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def _each(self, images: jax.Array, call: Callable[[nn.Module, jax.Array], Any]) -> dict[str, Any]:
        """What `call` makes of each encoder and the images [B, H, W, 3] as that encoder wants them."""
        c, found = self.config, {}
        for name, config in c.encoders.items():
            module = PARTS[type(config)](config, self.dtype, self.remat, name=name)
            found[name] = call(module, self._images_for(name, images))
        return found

    def _images_for(self, name: str, images: jax.Array) -> jax.Array:
        c, size = self.config, self.config.encoders[name].image_size
        if images.shape[1:3] != (size, size):
            shape = (images.shape[0], size, size, images.shape[-1])
            images = jax.image.resize(images.astype(jnp.float32), shape, "bicubic")
        if name not in c.normalizations:
            return images
        old, new = c.normalization, c.normalizations[name]
        pixels = images * jnp.asarray(old.std) + jnp.asarray(old.mean)
        return (pixels - jnp.asarray(new.mean)) / jnp.asarray(new.std)

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, D], row by row of the grid.

        Raises:
            ValueError: images that are not of `image_size`.
        """
        c = self.config
        found = self._each(
            images_of(media, c.image_size), lambda module, images: module(Media(images[:, None])).values
        )
        maps = []
        for name, config in c.encoders.items():
            side = side_of(config)
            grid = found[name].reshape(-1, side, side, config.feature_width)
            maps.append(resize(grid, (c.grid_size, c.grid_size), "bilinear"))
        return media_of(media, [jnp.concatenate(maps, axis=-1)], (-1,))

    def create(self, images: jax.Array) -> dict[str, Any]:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        return self._each(images, lambda module, images: module.create(images))
