"""An autoencoder without any training: squares of pixels and their principal components.

A square of pixels is a vector; its latent is the coordinates along the directions in which the squares of a data set
differ most (Pearson, 1901). What it loses is known beforehand, and fitting it takes seconds, where a convolutional
autoencoder takes hours: latents for small data sets. See `mmjax.train.patch_basis`.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.generators.latent_patches import patch_grid, together


@dataclasses.dataclass(frozen=True)
class PatchAutoencoderConfig:
    """Sizes.

    Attributes:
        patch: side of a square in pixels; it becomes one place of the latent.
        latent_channels, image_channels: of a latent and of an image.
        scale, shift: a diffusion model's latents are (latent - shift) * scale.
    """

    patch: int = 8
    latent_channels: int = 32
    image_channels: int = 3
    scale: float = 1.0
    shift: float = 0.0

    kind: ClassVar[str] = "patch_autoencoder"

    def __post_init__(self):
        most = self.patch**2 * self.image_channels
        if self.patch < 1 or not 1 <= self.latent_channels <= most:
            raise ConfigError(
                f"patch_autoencoder: latent_channels must be from 1 to {most}, the numbers of a square of {self.patch} "
                f"x {self.patch} pixels, got {self.latent_channels}"
            )

    @property
    def downsampling(self) -> int:
        """Pixels along a side of the image for one place of the latent."""
        return self.patch

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest image that `create` may be called with."""
        return (self.patch, self.patch, self.image_channels)


class PatchAutoencoder(nn.Module):
    """Parameters mean [P] and basis [P, C] of orthonormal columns, P the numbers of a square.

    Attributes:
        config: sizes.
        dtype: compute dtype.
    """

    config: PatchAutoencoderConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        c = self.config
        numbers = c.patch**2 * c.image_channels
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("feature",))
        directions = nn.with_logical_partitioning(nn.initializers.orthogonal(), ("feature", "embed"))
        self.mean = self.param("mean", zeros, (numbers,))
        self.basis = self.param("basis", directions, (numbers, c.latent_channels))

    def encode(self, images: jax.Array) -> jax.Array:
        """[B, H, W, channels], from -1 to 1 -> [B, H / patch, W / patch, C].

        Raises:
            ValueError: another number of channels, or sides that are no multiple of the patch's.
        """
        squares = apart(images.astype(self.dtype), self.config.patch, self.config.image_channels)
        return (squares - self.mean.astype(self.dtype)) @ self.basis.astype(self.dtype)

    def decode(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h * patch, w * patch, channels], about -1 to 1."""
        squares = latents.astype(self.dtype) @ self.basis.astype(self.dtype).T + self.mean.astype(self.dtype)
        grid = squares.shape[1:3]
        return together(squares.reshape(len(squares), -1, squares.shape[-1]), grid, self.config.patch)

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, channels]."""
        return self.decode(self.encode(images))


def apart(images: jax.Array, patch: int, channels: int) -> jax.Array:
    """Images [B, H, W, channels] -> their squares [B, H / patch, W / patch, patch * patch * channels]."""
    rows, columns = patch_grid(images, channels, patch)
    squares = images.reshape(len(images), rows, patch, columns, patch, channels).swapaxes(2, 3)
    return squares.reshape(len(images), rows, columns, -1)
