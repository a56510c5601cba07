"""Images in the frequency domain: cosine coefficients of small blocks in the place of pixels.

Feng et al., 2023, "DocPedia": an image of 2560 x 2560 pixels becomes 320 x 320 blocks of 8 x 8 coefficients, as JPEG
has them, and a Swin transformer reads one block as one place: 1600 features of what would be 25,600 patches of 16.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.swin import Swin, SwinConfig


@dataclasses.dataclass(frozen=True)
class DCTConfig:
    """A Swin transformer that reads coefficients.

    Attributes:
        encoder: its `patch_size` is the side of a block, and its `image_size` that of the image in pixels.
    """

    encoder: SwinConfig

    kind: ClassVar[str] = "dct"

    def __post_init__(self):
        if self.encoder.image_size % self.encoder.patch_size:
            raise ConfigError(
                f"dct.encoder: image_size {self.encoder.image_size} is no whole number of blocks of "
                f"{self.encoder.patch_size}"
            )

    @property
    def feature_width(self) -> int:
        """Channels of the features."""
        return self.encoder.feature_width

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item, (H, W, 3) of pixels."""
        return self.encoder.item_shape

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one image."""
        return self.encoder.num_tokens(grid, original_size)


def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix float64 [size, size]: row k holds the cosine of frequency k."""
    frequency, place = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * (place + 0.5) * frequency / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def block_dct(images: jax.Array, size: int, inverse: bool = False) -> jax.Array:
    """Every block of size x size numbers of images [..., H, W, C] as its cosine coefficients, in its place.

    Args:
        images: H and W are multiples of `size`.
        size: side of a block.
        inverse: from coefficients back to numbers.

    Raises:
        ValueError: sides that are no whole number of blocks.
    """
    *batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"{height} x {width} numbers are no whole number of blocks of {size} x {size}")
    matrix = jnp.asarray(cosines(size).T if inverse else cosines(size), images.dtype)
    blocks = images.reshape(*batch, height // size, size, width // size, size, channels)
    turned = jnp.einsum("ka,...haxbc,lb->...hkxlc", matrix, blocks, matrix, precision="highest")
    return turned.reshape(images.shape)


class DCT(nn.Module):
    """Pixels to features of their coefficients. Parameters: those of the encoder in `encoder`.

    Attributes:
        config: the encoder.
        dtype: compute dtype.
        remat: rematerialisation policy of its blocks.
    """

    config: DCTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        self.encoder = Swin(self.config.encoder, self.dtype, self.remat)

    def __call__(self, media: Media) -> Media:
        """Raw images [B, I, H, W, 3] -> features [B, I * N, D]."""
        return self.encoder(media.replace(values=self._turned(media.values)))

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """Images [B, H, W, 3] -> outputs as `Swin.run` gives them."""
        return self.encoder.run(self._turned(values))

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """Touches every parameter once: what `init` runs."""
        return self.encoder.create(self._turned(values))

    def _turned(self, values: jax.Array) -> jax.Array:
        return block_dct(jnp.asarray(values, jnp.float32), self.config.encoder.patch_size)
