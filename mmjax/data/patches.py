"""Images of any resolution as patches, in the order in which the towers of Qwen-VL take them.

Wang et al., 2024, "Qwen2-VL". An image keeps its shape, rounded to whole squares of patches; a patch reaches over
several frames, so that a single image stands for as many equal ones.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import OPENAI_MEAN, OPENAI_STD, ImageError, ImageProcessor

# What transformers' classes assume for keys that a config leaves out.
FAMILIES = {"Qwen2VL": {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}}
LONGEST_RATIO = 200


def rounded_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) nearest in shape whose sides `factor` divides, of no more and no fewer pixels than said.

    Args:
        height, width: of an image in pixels.
        factor: pixels of a side of a square of patches.
        min_pixels, max_pixels: bounds of height times width. A side of one `factor` is never made shorter.

    Raises:
        ImageError: one side is more than 200 times the other.
    """
    if max(height, width) > LONGEST_RATIO * min(height, width):
        raise ImageError(f"an image of {height} x {width} pixels is more than {LONGEST_RATIO} times as long as wide")

    # Python's rounding, halves to even, as published code has it; a side may come to nothing, then too few are left.
    near = tuple(round(side / factor) * factor for side in (height, width))
    if math.prod(near) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(math.floor(side / shrink / factor), 1) * factor for side in (height, width))
    if math.prod(near) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return near


def pack_patches(
    frames: np.ndarray, patch_size: int, temporal_patch_size: int, merge_size: int
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cuts frames into patches, square by square.

    Args:
        frames: float [T, H, W, 3]; the last one is repeated where `temporal_patch_size` does not divide T.
        patch_size, temporal_patch_size: pixels of a side, and frames, of a patch.
        merge_size: side of a square in patches.

    Returns:
        [N, 3 * temporal_patch_size * patch_size^2], each patch by channel, frame, row and column, and the grid (time,
        height, width) in patches.

    Raises:
        ImageError: H or W is no whole number of squares.
    """
    count, height, width, channels = frames.shape
    factor = patch_size * merge_size
    if height % factor or width % factor or not frames.size:
        raise ImageError(f"frames of {height} x {width} pixels are no whole number of squares of {factor} x {factor}")
    missing = -count % temporal_patch_size
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    time, rows, columns = len(frames) // temporal_patch_size, height // factor, width // factor
    inside = (merge_size, patch_size)
    x = frames.reshape(time, temporal_patch_size, rows, *inside, columns, *inside, channels)
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    grid = (time, rows * merge_size, columns * merge_size)
    return np.ascontiguousarray(x).reshape(math.prod(grid), -1), grid


@dataclasses.dataclass(frozen=True)
class PatchesProcessor:
    """The recipe from an image to packed patches; the defaults are Qwen2-VL's.

    Attributes:
        image: how pixels are resampled, rescaled and normalised; its own sizes do not matter.
        min_pixels, max_pixels: bounds of height times width, see `rounded_size`.
        patch_size, temporal_patch_size, merge_size: see `pack_patches`.
    """

    image: ImageProcessor = dataclasses.field(default_factory=lambda: _image({}))
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __post_init__(self):
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ImageError(f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: wanted 0 < min <= max")
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            if getattr(self, name) < 1:
                raise ImageError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "PatchesProcessor":
        """Reads `preprocessor_config.json`, or the `image_processor` inside `processor_config.json`.

        The bounds are `min_pixels` and `max_pixels`, or else `size` with `shortest_edge` and `longest_edge`, which
        are numbers of pixels here, whatever their names say.

        Raises:
            ImageError: another image processor.
        """
        config = config.get("image_processor", config)
        kind = str(config.get("image_processor_type"))
        family = re.sub(r"ImageProcessor(Fast|Pil)?$", "", kind)
        if family not in FAMILIES:
            raise ImageError(f"image processor {kind!r} does not pack patches; known are {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        size = values.pop("size", {})
        bounds = {
            "min_pixels": values.pop("min_pixels", None) or size.get("shortest_edge"),
            "max_pixels": values.pop("max_pixels", None) or size.get("longest_edge"),
        }
        sizes = {name: int(values[name]) for name in FAMILIES[family]}
        return cls(_image(values), **{name: int(most) for name, most in bounds.items() if most}, **sizes)

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        return {
            **self.image.to_hf(),
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
        }

    @property
    def item_shape(self) -> None:
        """Depends on the image."""
        return None

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with the recipe's options."""
        return self.image.open(source, name)

    def size_of(self, image: Image.Image) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """The grid (1, height, width) in patches, and (height, width) in pixels, of what `open` gave.

        Raises:
            ImageError: see `rounded_size`.
        """
        height, width = self._size(image)
        return (1, height // self.patch_size, width // self.patch_size), (image.height, image.width)

    def pack(self, image: Any, name: str = "") -> tuple[np.ndarray, tuple[int, int, int]]:
        """Opens and processes one image; returns float32 [N, patch numbers] and the grid, see `pack_patches`."""
        image = self.open(image, name)
        if self.image.do_resize:
            image = image.resize(self._size(image)[::-1], resample=self.image.resample)
        pixels = dataclasses.replace(self.image, do_resize=False)(image, name)
        frames = np.repeat(pixels[None], self.temporal_patch_size, axis=0)
        return pack_patches(frames, self.patch_size, self.temporal_patch_size, self.merge_size)

    def __call__(self, image: Any, name: str = "") -> np.ndarray:
        """Opens and processes one image; returns its patches, float32 [N, patch numbers]."""
        return self.pack(image, name)[0]

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) in pixels that the image is resized to."""
        if not self.image.do_resize:
            return image.height, image.width
        factor = self.patch_size * self.merge_size
        return rounded_size(image.height, image.width, factor, self.min_pixels, self.max_pixels)


def _image(values: Mapping[str, Any]) -> ImageProcessor:
    """What is done to pixels, of a config's other keys; the size stands for one that every image has its own of."""
    known = {field.name for field in dataclasses.fields(ImageProcessor)} - {"size", "crop_size"} | {"mmjax"}
    given = {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD, "size": {"shortest_edge": 1}}
    given |= {key: value for key, value in values.items() if key in known}
    return ImageProcessor.from_hf({**given, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False})
