"""Images of any resolution as one view of the whole and tiles of it; videos as frames.

Liu et al., 2024, "LLaVA-NeXT" (tiles put together, padding left out, a learned token at the end of each row); Li et
al., 2024, "LLaVA-OneVision" (features of too many tiles scaled down, frames of a video pooled).

Every tile goes through encoder and projector by itself. Which of the projected tokens the LLM gets, and in which
order, follows from the image's size alone; it is settled on the host, in numpy, so that no program depends on it.
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.data.contracts import Media
from mmjax.data.tiles import best_resolution
from mmjax.projectors.linear import LinearProjector, LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjector, MLPProjectorConfig

EACH = {LinearProjectorConfig: LinearProjector, MLPProjectorConfig: MLPProjector}
FRAMES = ("none", "keep", "bilinear", "average_first")
# In an arrangement, the learned token that ends rows.
NEWLINE = -1

Arrangement = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class TilesConfig:
    """What makes tokens of each tile, and how tiles are put together.

    Attributes:
        projector: of the features of one tile; as many tokens as features.
        tile_size: pixels of a side of a tile: the image size of the encoder.
        grid_size: features of a side of a tile.
        resolutions: (height, width) in pixels that an image may be resized to, multiples of `tile_size`.
        newline: whether there is a learned token, which ends the rows of an image in tiles, an image without,
            and a video of "bilinear" frames.
        most_tiles: features of more tiles than this are scaled down to about that many; None never.
        frames: what an item is: an image ("none"), or a video whose frames' tokens are left as they are
            ("keep"), halved on both sides by bilinear interpolation ("bilinear"), or averaged two by two before the
            projector ("average_first").
    """

    projector: LinearProjectorConfig | MLPProjectorConfig
    tile_size: int
    grid_size: int
    resolutions: tuple[tuple[int, int], ...] = ()
    newline: bool = True
    most_tiles: int | None = None
    frames: str = "none"

    kind: ClassVar[str] = "tiles"

    def __post_init__(self):
        check_choice("tiles projector frames", self.frames, FRAMES)
        if self.grid_size < 1 or self.tile_size < 1:
            raise ConfigError(
                f"tiles projector: tile_size and grid_size must be at least 1, got {self.tile_size}, {self.grid_size}"
            )
        if self.frames == "none" and not self.resolutions:
            raise ConfigError("tiles projector: resolutions must name at least one (height, width)")
        for height, width in self.resolutions:
            if height < 1 or width < 1 or height % self.tile_size or width % self.tile_size:
                raise ConfigError(
                    f"tiles projector: resolution {height} x {width} is no multiple of tile_size {self.tile_size}"
                )
        if self.frames == "average_first" and self.grid_size < 2:
            raise ConfigError("tiles projector: frames of one feature cannot be averaged two by two")

    @property
    def in_width(self) -> int:
        """Channels of a feature."""
        return self.projector.in_width

    @property
    def width(self) -> int:
        """D of the LLM."""
        return self.projector.width

    def resolution(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that an image is fitted into, see `best_resolution`."""
        return best_resolution(original_size, self.resolutions)

    def num_tiles(self, original_size: tuple[int, int]) -> int:
        """Entries of an image: the view of the whole, and its tiles."""
        height, width = self.resolution(original_size)
        return 1 + (height // self.tile_size) * (width // self.tile_size)

    def num_entries(self, grid=None, original_size=None) -> int:
        """Entries of an item; arguments as in `arrangement`."""
        return int(grid[0]) if grid is not None else self.num_tiles(original_size)

    @property
    def leading(self) -> int:
        """Projected tokens that stand before those of the tiles."""
        return int(self.newline)

    def num_tokens(self, num_features: int, grid=None) -> int:
        """Tokens of one tile or frame with `num_features` features.

        Raises:
            ConfigError: it is no grid of `grid_size`.
        """
        if num_features != self.grid_size**2:
            raise ConfigError(
                f"tiles projector: {num_features} features a tile are no grid of {self.grid_size} x {self.grid_size}; "
                'leave out class token and registers with feature_strategy "patches"'
            )
        return (self.grid_size // 2) ** 2 if self.frames == "average_first" else num_features

    def arrangement(self, grid=None, original_size=None) -> Arrangement:
        """Which of an item's projected tokens, tile after tile, each of its LLM tokens is made of.

        Args:
            grid: (entries, height, width); its entries are how many frames a video has, or 1 for an image that
                is not cut into tiles.
            original_size: (height, width) in pixels of an image.

        Returns:
            int32 [M, K] with NEWLINE for the learned token, and float32 [M, K] weights, or None with K = 1.

        Raises:
            ValueError: neither says what the item is.
        """
        if self.frames != "none":
            if grid is None:
                raise ValueError("a video needs its grid: how many frames it has")
            return self._frames(int(grid[0]))
        side, whole = self.grid_size, np.arange(self.grid_size**2, dtype=np.int32)[:, None]
        if grid is not None and grid[0] == 1:
            return self._ended(whole), None
        if original_size is None:
            raise ValueError("an image in tiles needs its original_size")
        height, width = self.resolution(original_size)
        rows, columns = height // self.tile_size, width // self.tile_size
        tiles = len(whole) + np.arange(rows * columns * side**2, dtype=np.int32)
        tiles = tiles.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
        tiles, weights = self._scaled(unpadded(tiles, original_size))
        count = tiles.shape[-1]
        alone = np.eye(1, count, dtype=np.float32)
        if self.newline:
            tiles = np.pad(tiles, ((0, 0), (0, 1), (0, 0)), constant_values=NEWLINE)
            weights = np.concatenate([weights, np.broadcast_to(alone, (len(tiles), 1, count))], axis=1)
        places = np.concatenate([whole.repeat(count, axis=1), tiles.reshape(-1, count)])
        weights = np.concatenate([alone.repeat(len(whole), axis=0), weights.reshape(-1, count)])
        return places, weights if count > 1 else None

    def _scaled(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[h, w] -> [h', w', K] and weights, fewer where there are too many."""
        height, width = tiles.shape
        if self.most_tiles is not None:
            ratio = math.sqrt(height * width / (self.most_tiles * self.grid_size**2))
            if ratio > 1.1:
                return bilinear(tiles, int(height // ratio), int(width // ratio))
        return tiles[..., None], np.ones((*tiles.shape, 1), np.float32)

    def _frames(self, count: int) -> Arrangement:
        side = self.grid_size // 2 if self.frames == "average_first" else self.grid_size
        rows = np.arange(count * side**2, dtype=np.int32).reshape(count, side, side)
        if self.frames != "bilinear":
            return rows.reshape(-1, 1), None
        half = math.ceil(side / 2)
        pooled = [bilinear(frame, half, half) for frame in rows]
        places = np.concatenate([places.reshape(half**2, 4) for places, _ in pooled])
        weights = np.concatenate([weights.reshape(half**2, 4) for _, weights in pooled])
        if self.newline:
            weights = np.concatenate([weights, np.eye(1, 4, dtype=np.float32)])
        return self._ended(places), weights

    def _ended(self, places: np.ndarray) -> np.ndarray:
        """Places [M, K] with the learned token behind them, where there is one."""
        return np.pad(places, ((0, 1), (0, 0)), constant_values=NEWLINE) if self.newline else places


def unpadded(tiles: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
    """[h, w, ...] of an image that was fitted in with a border -> the rows and columns that are no border."""
    (height, width), (rows, columns) = (int(side) for side in original_size), tiles.shape[:2]
    if width / height > columns / rows:
        border = (rows - int(round(height * (columns / width), 7))) // 2
        return tiles[border : rows - border]
    border = (columns - int(round(width * (rows / height), 7))) // 2
    return tiles[:, border : columns - border]


def bilinear(places: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [h, w] scaled to [height, width, 4] of them and their weights: bilinear, no smoothing, centres kept."""

    def axis(old, new):
        at = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
        low = np.minimum(at.astype(np.int64), old - 1)
        high = np.minimum(low + 1, old - 1)
        return np.stack([low, high]), np.stack([1 - (at - low), at - low])

    (rows, row_weights), (columns, column_weights) = axis(places.shape[0], height), axis(places.shape[1], width)
    found = places[rows[:, None, :, None], columns[None, :, None, :]]
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    shape = (4, height, width)
    return (
        np.moveaxis(found.reshape(shape), 0, -1).astype(np.int32),
        np.moveaxis(weights.reshape(shape), 0, -1).astype(np.float32),
    )


class TilesProjector(nn.Module):
    """Features of tiles [B, N, in_width] -> their tokens, behind the learned one: [B, 1 + N, D].

    Parameters: each/..., newline [D]. Which tokens go on to the LLM is for `arrange` to say.
    """

    config: TilesConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, media: Media, train: bool = False) -> Media:
        """`train` turns on dropout in projectors that have any; this one has none."""
        c = self.config
        if c.frames == "average_first" and not self.is_initializing():
            media = _averaged(media, c.grid_size)
        media = EACH[type(c.projector)](c.projector, self.dtype, name="each")(media, train)
        if not c.newline:
            return media
        init = nn.with_logical_partitioning(nn.initializers.normal(c.width**-0.5), ("embed",))
        newline = self.param("newline", init, (c.width,)).astype(self.dtype)
        first = jnp.broadcast_to(newline, (media.values.shape[0], 1, c.width))
        segments = media.segment_ids
        if segments is not None:
            segments = jnp.pad(jnp.asarray(segments), ((0, 0), (1, 0)))
        return media.replace(values=jnp.concatenate([first, media.values], axis=1), segment_ids=segments)


def _averaged(media: Media, side: int) -> Media:
    """Features of grids of side x side, two by two; a last odd row or column is left out."""
    batch, length, channels = media.values.shape
    grids = media.values.reshape(-1, side, side, channels)
    half = side // 2
    x = grids[:, : 2 * half, : 2 * half].reshape(-1, half, 2, half, 2, channels).mean(axis=(2, 4))
    segments = media.segment_ids
    if segments is not None:
        segments = jnp.repeat(jnp.asarray(segments)[:, :: side**2], half**2, axis=1)
    return media.replace(values=x.reshape(batch, length // side**2 * half**2, channels), segment_ids=segments)


def arrange(media: Media) -> Media:
    """Projected tokens [B, N, D] as `order` and `order_weights` say: [B, M, D]; as they are where it is None."""
    if media.order is None:
        return media
    order = jnp.asarray(media.order)
    seen = order >= 0
    index = jnp.maximum(order, 0)

    def rows(index):
        return jnp.take_along_axis(media.values, index[..., None], axis=1, mode="clip")

    if order.ndim == 2:
        values = rows(index)
    else:
        weights = jnp.asarray(media.order_weights, media.values.dtype)
        values = sum(rows(index[..., k]) * weights[..., k, None] for k in range(order.shape[-1]))
        seen = seen[..., 0]
    values = jnp.where(seen[..., None], values, 0)
    return media.replace(values=values, segment_ids=seen.astype(jnp.int32), order=None, order_weights=None)
