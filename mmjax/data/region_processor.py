"""The recipe of regions: what a region projector takes, of the image as its encoder sees it."""

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mmjax.config import check_choice
from mmjax.data.box_geometry import Size
from mmjax.data.region_places import Placement
from mmjax.data.regions import Region, RegionError, region_of

TAKES = ("boxes", "masks")
# A point becomes a disc, or the square around it, of this share of the image's longer side (Ferret: 5 of 336 pixels).
POINT_RADIUS = 5 / 336


class Placed(NamedTuple):
    """A region that was opened, and where its image lies."""

    region: Region
    place: Placement
    mask: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RegionProcessor:
    """The recipe of a port of regions.

    Attributes:
        takes: "boxes", x1, y1, x2, y2 as shares of the processed image's sides, or "masks" of it.
        mask_size: rows and columns of a mask.
        images: the port of the images.
        point_radius: of the disc that a point becomes, as a share of the original image's longer side.
    """

    takes: str = "boxes"
    mask_size: tuple[int, int] | None = None
    images: str = "image"
    point_radius: float = POINT_RADIUS

    def __post_init__(self):
        check_choice("takes", self.takes, TAKES)
        if (self.takes == "masks") != (self.mask_size is not None):
            raise RegionError(f"mask_size is {self.mask_size} with takes {self.takes!r}; masks need one")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "RegionProcessor":
        """What `to_hf` wrote."""
        fields = {key: value for key, value in config.items() if key != "region_processor_type"}
        if fields.get("mask_size") is not None:
            fields["mask_size"] = tuple(fields["mask_size"])
        return cls(**fields)

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        size = None if self.mask_size is None else list(self.mask_size)
        return {"region_processor_type": "RegionProcessor", **dataclasses.asdict(self), "mask_size": size}

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of every array."""
        return (4,) if self.mask_size is None else self.mask_size

    def open(self, source: Any, name: str, place: Placement) -> Placed:
        """Reads a region of an image that lies at `place`.

        Raises:
            RegionError: coordinates outside of the image, an empty mask, or one of another shape than its image.
        """
        region = source if isinstance(source, Region) else None
        if isinstance(source, Mapping):
            region = _named(name, region_of, source)
        if region is None:
            raise RegionError(f"{name}: expected a Region, got {type(source).__name__}")
        return Placed(region, place, _named(name, _checked, region, place))

    @staticmethod
    def size_of(opened: Placed) -> tuple[None, Size]:
        """No grid, and the size of the image."""
        return None, opened.place.size

    def __call__(self, opened: Placed, name: str = "region") -> np.ndarray:
        """float32 of `item_shape`.

        Raises:
            RegionError: nothing of the region is left in the processed image.
        """
        if self.takes == "boxes":
            return _named(name, self._box, opened)
        return _named(name, self._mask, opened)

    def _box(self, opened: Placed) -> np.ndarray:
        corners = np.clip(opened.place(_bounds(opened, self.point_radius).reshape(2, 2)), 0, 1)
        if (corners[1] <= corners[0]).any():
            raise RegionError("nothing of it is left where the image was cut")
        return corners.reshape(4).astype(np.float32)

    def _mask(self, opened: Placed) -> np.ndarray:
        height, width = self.mask_size
        middle = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        places = opened.place.back(np.stack(np.meshgrid(*middle), axis=-1))
        inside = _inside(opened, places, self.point_radius)
        if not inside.any():
            # Thinner than the distance of two pixels: the one at its middle.
            x, y = opened.place(_bounds(opened, self.point_radius).reshape(2, 2).mean(axis=0))
            if not (0 <= x < 1 and 0 <= y < 1):
                raise RegionError("nothing of it is left where the image was cut")
            inside[int(y * height), int(x * width)] = True
        return inside.astype(np.float32)


def _named(name: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except RegionError as error:
        raise RegionError(f"{name}: {error}") from error


def _shares(opened_size: Size, region: Region, points: Any) -> np.ndarray:
    height, width = opened_size
    return np.asarray(points, np.float64) / ((width, height) if region.pixels else (1, 1))


def _checked(region: Region, place: Placement) -> np.ndarray | None:
    """The opened mask, if the region is one."""
    height, width = place.size
    if region.mask is not None:
        mask = _open_mask(region.mask)
        if mask.shape != (height, width):
            raise RegionError(f"its mask is {list(mask.shape)}, its image {[height, width]}")
        if not mask.any():
            raise RegionError("its mask is empty")
        return mask
    if region.box is not None:
        given, corners = f"box {list(region.box)}", _shares(place.size, region, np.reshape(region.box, (2, 2)))
        if (corners[1] <= corners[0]).any():
            raise RegionError(f"{given} has no area; boxes are x1, y1, x2, y2")
    elif region.point is not None:
        given, corners = f"point {list(region.point)}", _shares(place.size, region, region.point)
    else:
        given, corners = "its polygon", _shares(place.size, region, sum(region.polygon, ()))
        if (np.ptp(corners, axis=0) <= 0).any():
            raise RegionError("its polygon has no area")
    if corners.min() < 0 or corners.max() > 1:
        unit = "pixels" if region.pixels else 'shares of its sides (for pixels say "pixels": true)'
        raise RegionError(f"{given} is outside of its image of height {height} and width {width}, in {unit}")
    return None


def _open_mask(source: Any) -> np.ndarray:
    """bool [h, w] of a path, the bytes of an image file, an image or an array."""
    if isinstance(source, (str, os.PathLike, bytes)):
        label = "bytes" if isinstance(source, bytes) else str(source)
        try:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            source = np.asarray(opened.convert("L") if opened.mode not in ("P", "I;16", "I", "1") else opened)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{label}: no such file of a mask") from error
        except OSError as error:
            raise RegionError(f"{label}: cannot be read ({error})") from error
    mask = np.asarray(source)
    if mask.ndim != 2 or not mask.size:
        raise RegionError(f"its mask is {list(mask.shape)}, wanted [h, w]")
    return mask != 0


def _bounds(opened: Placed, radius: float) -> np.ndarray:
    """x1, y1, x2, y2 around a region as shares of the original image."""
    region, (height, width) = opened.region, opened.place.size
    if opened.mask is not None:
        rows, columns = np.flatnonzero(opened.mask.any(axis=1)), np.flatnonzero(opened.mask.any(axis=0))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        return np.array(edges, np.float64) / (width, height, width, height)
    if region.box is not None:
        return _shares(opened.place.size, region, np.reshape(region.box, (2, 2))).reshape(4)
    if region.point is not None:
        point = _shares(opened.place.size, region, region.point)
        reach = radius * max(height, width) / np.array([width, height])
        return np.clip(np.concatenate([point - reach, point + reach]), 0, 1)
    corners = _shares(opened.place.size, region, sum(region.polygon, ()))
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _inside(opened: Placed, places: np.ndarray, radius: float) -> np.ndarray:
    """bool [h, w], which places [h, w, 2], x and y as shares of the original image, a region holds."""
    region, (height, width) = opened.region, opened.place.size
    shown = ((places >= 0) & (places < 1)).all(axis=-1)
    if region.point is not None:
        away = (places - _shares(opened.place.size, region, region.point)) * (width, height)
        return shown & (np.hypot(away[..., 0], away[..., 1]) <= radius * max(height, width))
    if region.box is not None:
        low, high = _shares(opened.place.size, region, np.reshape(region.box, (2, 2)))
        return shown & ((places >= low) & (places < high)).all(axis=-1)
    mask = opened.mask if opened.mask is not None else _filled(region, opened.place.size)
    column = np.clip((places[..., 0] * mask.shape[1]).astype(int), 0, mask.shape[1] - 1)
    row = np.clip((places[..., 1] * mask.shape[0]).astype(int), 0, mask.shape[0] - 1)
    return shown & mask[row, column]


def _filled(region: Region, size: Size) -> np.ndarray:
    """Polygons filled, at the image's own size."""
    height, width = size
    canvas = Image.new("1", (width, height))
    for polygon in region.polygon:
        corners = _shares(size, region, polygon) * (width, height) - 0.5
        ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], fill=1, outline=1)
    return np.asarray(canvas)
