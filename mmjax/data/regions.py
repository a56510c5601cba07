"""Regions of images as a conversation names them: boxes, masks, polygons and points. Nothing is opened here."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class RegionError(ValueError):
    """A region that lies nowhere in its image; the message names the sample and what is wrong."""


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A region as it is given; one of the four.

    Attributes:
        box: x1, y1, x2, y2.
        mask: path or bytes of an image file or an array [h, w], not 0 inside.
        polygon: corners (x, y), at least three; or several of such.
        point: x, y.
        pixels: whether coordinates are pixels of the image, not shares of its sides.
        image: number, from 1, of the conversation's image; None is the latest before it.
    """

    box: Sequence[float] | None = None
    mask: Any = None
    polygon: Sequence[Any] | None = None
    point: Sequence[float] | None = None
    pixels: bool = False
    image: int | None = None


def region_of(part: Mapping[str, Any]) -> Region:
    """{"box" | "mask" | "polygon" | "point": ..., "pixels", "image"} -> Region; a list as "mask" is a polygon.

    Raises:
        RegionError: none of the four, or several; numbers that are none.
    """
    if not isinstance(part, Mapping):
        raise RegionError(f"a region is a mapping, found {type(part).__name__}")
    shapes = [key for key in ("box", "mask", "polygon", "point") if part.get(key) is not None]
    if len(shapes) != 1:
        raise RegionError(f'a region needs one of "box", "mask", "polygon" and "point", found {shapes}')
    key, value = shapes[0], part[shapes[0]]
    if key == "mask" and isinstance(value, list | tuple):
        key = "polygon"
    if key == "polygon":
        value = _polygons(value)
    elif key in ("box", "point"):
        value = _numbers(key, value, 4 if key == "box" else 2)
    image = part.get("image")
    if image is not None and (isinstance(image, bool) or not isinstance(image, int) or image < 1):
        raise RegionError(f'"image" of a region is its number, from 1, got {image!r}')
    return Region(**{key: value}, pixels=bool(part.get("pixels", False)), image=image)


def _numbers(name: str, value: Any, count: int) -> tuple[float, ...]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise RegionError(f"{name} {value!r}: wanted {count} numbers") from error
    if array.shape != (count,) or not np.isfinite(array).all():
        raise RegionError(f"{name} {value!r}: wanted {count} finite numbers")
    return tuple(array.tolist())


def _polygons(value: Any) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """One polygon or several, each of corners [x, y] or of numbers x, y, x, y, ..., as tuples of corners."""
    nested = len(value) > 0 and np.ndim(value[0]) > 0
    flat = not nested
    several = nested and len(value[0]) > 0 and (np.ndim(value[0][0]) > 0 or len(value[0]) > 2)
    found = []
    for shape in value if several else (value,):
        corners = shape if not (flat or np.ndim(shape[0]) == 0) else [shape[i : i + 2] for i in range(0, len(shape), 2)]
        if len(corners) < 3:
            raise RegionError(f"a polygon of {len(corners)} corners: wanted at least 3")
        found.append(tuple(_numbers("corner", corner, 2) for corner in corners))
    return tuple(found)
