"""No encoder at all: regions of images as they are, for a projector that reads their images' maps.

Zhang et al., 2023, "GPT4RoI" (boxes); Yuan et al., 2024, "Osprey", and You et al., 2023, "Ferret" (masks).
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media


@dataclasses.dataclass(frozen=True)
class RegionItemsConfig:
    """What a region is.

    Attributes:
        takes: "boxes", x1, y1, x2, y2 as shares of the sides of the image that the encoder sees, or "masks" of it, not
            0 inside.
        mask_size: rows and columns of a mask; None with boxes.
    """

    takes: str
    mask_size: tuple[int, int] | None = None

    kind: ClassVar[str] = "region_items"

    def __post_init__(self):
        check_choice("region_items.takes", self.takes, ("boxes", "masks"))
        if (self.takes == "masks") != (self.mask_size is not None):
            raise ConfigError(f"region_items.mask_size is {self.mask_size} with takes {self.takes!r}; masks need one")
        if self.mask_size is not None and min(self.mask_size) < 1:
            raise ConfigError(f"region_items.mask_size {self.mask_size} must be at least 1 x 1")

    @property
    def feature_width(self) -> int:
        """The numbers of a region."""
        return 4 if self.mask_size is None else self.mask_size[0] * self.mask_size[1]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one raw item: (4,), or that of a mask."""
        return (4,) if self.mask_size is None else tuple(self.mask_size)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one region."""
        return 1


class RegionItems(nn.Module):
    """Regions [B, I, *item_shape] as features [B, I, numbers]. There are no parameters.

    Attributes:
        config: what a region is.
        dtype, remat: do not matter; coordinates stay float32.
    """

    config: RegionItemsConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __call__(self, media: Media) -> Media:
        """Stage "raw" -> "encoded".

        Raises:
            ValueError: regions of another shape.
        """
        values = jnp.asarray(media.values, jnp.float32)
        if values.shape[2:] != self.config.item_shape:
            raise ValueError(f"regions are {values.shape}; wanted [B, I, {str(self.config.item_shape).strip('(,)')}]")
        return media.replace(values=values.reshape(*values.shape[:2], -1), stage="encoded")

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """Regions [B, *item_shape] -> "last_hidden_state" [B, 1, numbers]."""
        return {"last_hidden_state": jnp.asarray(values, jnp.float32).reshape(len(values), 1, -1)}

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """What `init` runs, though there is nothing to be made."""
        return self.run(values)
