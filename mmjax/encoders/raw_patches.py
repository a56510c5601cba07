"""No encoder at all: patches of pixels as they are, for a projector that maps them into the LLM's width.

Bavishi et al., 2023 ("Fuyu-8B").
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media


@dataclasses.dataclass(frozen=True)
class RawPatchesConfig:
    """Size of a patch: `patch_size` pixels of a side, `channels` numbers a pixel."""

    patch_size: int
    channels: int = 3

    kind: ClassVar[str] = "raw_patches"
    packed: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("patch_size", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"raw_patches.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def feature_width(self) -> int:
        """Channels of the features: the numbers of a patch."""
        return self.channels * self.patch_size**2

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of the smallest raw item, (patches, numbers of a patch)."""
        return (1, self.feature_width)

    def num_tokens(self, grid=None, original_size=None) -> int:
        """Features of one item, one a patch.

        Args:
            grid: (time, height, width) of the item in patches; the smallest item unless given.
            original_size: does not matter.
        """
        return 1 if grid is None else math.prod(map(int, grid))


class RawPatches(nn.Module):
    """Patches [B, N, F] as features. There are no parameters.

    Attributes:
        config: size of a patch.
        dtype: of the features.
        remat: does not matter.
    """

    config: RawPatchesConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __call__(self, media: Media) -> Media:
        """Stage "raw" -> "encoded", nothing else.

        Raises:
            ValueError: patches of another size.
        """
        return media.replace(values=self.run(media.values)["last_hidden_state"], stage="encoded")

    def run(self, values: jax.Array) -> dict[str, jax.Array]:
        """values [B, N, F] -> "last_hidden_state" [B, N, F] in `dtype`."""
        if values.shape[-1] != self.config.feature_width:
            raise ValueError(f"patches have {values.shape[-1]} numbers each; wanted {self.config.feature_width}")
        return {"last_hidden_state": jnp.asarray(values, self.dtype)}

    def create(self, values: jax.Array) -> dict[str, jax.Array]:
        """What `init` runs, though there is nothing to be made."""
        return self.run(values)
