"""Boxes moved together with their image, and compared with each other.

Boxes are x1, y1, x2, y2 in pixels, [R, 4]; sizes are (height, width).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Size = tuple[int, int]


def square_offset(size: Size) -> tuple[int, int]:
    """How far (down, right) an image of `size` lies inside the square that it is padded to, in the middle.

    As LLaVA-1.5 (Liu et al., 2024) and Shikra pad: where the padding is odd, the smaller half comes first.
    """
    side = max(size)
    return (side - size[0]) // 2, (side - size[1]) // 2


def to_square(boxes: Any, size: Size) -> np.ndarray:
    """Boxes of an image -> boxes of its padded square, float64 [R, 4]."""
    down, right = square_offset(size)
    return _rows(boxes) + (right, down, right, down)


def from_square(boxes: Any, size: Size) -> np.ndarray:
    """Boxes of the padded square -> boxes of the image of `size`, cut off at its edges, float64 [R, 4]."""
    down, right = square_offset(size)
    height, width = size
    return np.clip(_rows(boxes) - (right, down, right, down), 0, (width, height, width, height))


def resize_boxes(boxes: Any, size: Size, target: Size) -> np.ndarray:
    """Boxes of an image of `size` -> boxes of the image resized to `target`, float64 [R, 4]."""
    down, right = target[0] / size[0], target[1] / size[1]
    return _rows(boxes) * (right, down, right, down)


def expand_to_square(
    image: Image.Image, boxes: Any, color: tuple[int, int, int] = (0, 0, 0)
) -> tuple[Image.Image, np.ndarray]:
    """An image, padded with `color` to a square, and its boxes there."""
    size = image.height, image.width
    down, right = square_offset(size)
    square = Image.new(image.mode, (max(size), max(size)), color)
    square.paste(image, (right, down))
    return square, to_square(boxes, size)


def resize_together(
    image: Image.Image, boxes: Any, target: Size, resample: int = Image.Resampling.BICUBIC
) -> tuple[Image.Image, np.ndarray]:
    """An image, resized to `target`, and its boxes there."""
    moved = resize_boxes(boxes, (image.height, image.width), target)
    return image.resize((target[1], target[0]), resample=resample), moved


def pairwise_iou(first: Any, second: Any) -> np.ndarray:
    """Intersection over union of every box [N, 4] with every box [M, 4] -> float64 [N, M]; 0 where both are empty."""
    first, second = _rows(first)[:, None], _rows(second)[None]
    shared = _area(np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:]))
    united = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    return np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)


def box_accuracy(predicted: Sequence[Any], truth: Sequence[Any], threshold: float = 0.5) -> float:
    """Share of samples whose box overlaps the true one by at least `threshold`; `predicted` None counts as wrong.

    Kazemzadeh et al., 2014 ("ReferItGame"), as referring-expression benchmarks report it.

    Raises:
        ValueError: no samples, or not as many predictions as truths.
    """
    if len(predicted) != len(truth) or not len(truth):
        raise ValueError(f"{len(predicted)} predicted boxes for {len(truth)} true ones")
    right = [
        mine is not None and pairwise_iou(mine, other)[0, 0] >= threshold
        for mine, other in zip(predicted, truth, strict=True)
    ]
    return float(np.mean(right))


def _rows(boxes: Any) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    if boxes.shape[-1:] != (4,) or boxes.ndim > 2:
        raise ValueError(f"boxes must be [R, 4] or [4], got {list(boxes.shape)}")
    return boxes.reshape(-1, 4)


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0), axis=-1)
