"""Images as patches row by row, in their own shape: rules for their size that are not Qwen-VL's (see `patches`).

Agrawal et al., 2024 ("Pixtral 12B"), Laurençon et al., 2024 ("Idefics2"), Bavishi et al., 2023 ("Fuyu-8B").
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import HALF, OPENAI_MEAN, OPENAI_STD, ImageError, ImageProcessor
from mmjax.data.items import MediaSize
from mmjax.data.patches import pack_patches
from mmjax.data.split import steps
from mmjax.data.wording import Source

# What transformers' classes assume for keys that a config leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "Pixtral": {
        "size": {"longest_edge": 1024}, "patch_size": 16, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD,
    },
    "Idefics2": {
        "size": {"shortest_edge": 378, "longest_edge": 980}, "patch_size": 14, "image_mean": HALF, "image_std": HALF,
        "resample": 2, "do_image_splitting": False,
    },
    "Fuyu": {
        "size": {"height": 1080, "width": 1920}, "patch_size": 30, "image_mean": HALF, "image_std": HALF,
        "resample": 2, "padding_value": 1.0,
    },
}  # fmt: skip


def within(height: int, width: int, longest: int, squares: int) -> tuple[int, int]:
    """Shrunk to sides of `longest` at most, rounded up to whole squares (Pixtral)."""
    ratio = max(height, width) / longest
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return tuple(max(1, math.ceil(side / squares)) * squares for side in (height, width))


def between(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The longer side at `longest` at most, then no side shorter than `shortest` (Idefics2)."""
    ratio = width / height
    if width >= height and width > longest:
        height, width = int(longest / ratio), longest
    elif height > width and height > longest:
        height, width = longest, int(longest * ratio)
    return max(height, shortest), max(width, shortest)


def inside(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Shrunk into a canvas where it is larger (Fuyu)."""
    if width <= columns and height <= rows:
        return height, width
    scale = min(rows / height, columns / width)
    return int(height * scale), int(width * scale)


@dataclasses.dataclass(frozen=True)
class OwnShapeProcessor:
    """The recipe from an image to its patches.

    Attributes:
        image: how pixels are resampled, rescaled and normalised; its own sizes do not matter.
        size: the bounds, under the names that the family has for them.
        family: "Pixtral", "Idefics2" or "Fuyu", the class of transformers that does the same.
        patch_size: pixels of a side of a patch.
        merge_size: side in patches of a square that becomes one token ("Pixtral").
        split: whether the four quarters of an image are items before the whole ("Idefics2").
        padding: value of the pixels that fill up the last patches, before they are rescaled ("Fuyu").
    """

    image: ImageProcessor
    size: Mapping[str, int]
    family: str = "Pixtral"
    patch_size: int = 16
    merge_size: int = 1
    split: bool = False
    padding: float = 1.0

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ImageError(f"family is {self.family!r}; wanted {' or '.join(FAMILIES)}")
        keys = set(FAMILIES[self.family]["size"])
        if set(self.size) != keys:
            raise ImageError(f"{self.family}: size is {dict(self.size)}; wanted {' and '.join(sorted(keys))}")
        for name in ("patch_size", "merge_size"):
            if getattr(self, name) < 1:
                raise ImageError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "OwnShapeProcessor":
        """Reads `preprocessor_config.json`, or the `image_processor` inside `processor_config.json`.

        `spatial_merge_size` is what transformers keeps in the processor beside it; `patch_size` is there too for
        Pixtral, and the tower's for Idefics2, which is none of its processor's business.

        Raises:
            ImageError: another image processor, or a size that is not its.
        """
        config = config.get("image_processor", config)
        kind = str(config.get("image_processor_type"))
        family = re.sub(r"ImageProcessor(Fast|Pil)?$", "", kind)
        if family not in FAMILIES:
            raise ImageError(f"image processor {kind!r} is not among {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        patch, own = values["patch_size"], values.get("mmjax") or {}
        if isinstance(patch, Mapping):
            if patch["height"] != patch["width"]:
                raise ImageError(f"{kind}: patches of {patch} are not square")
            patch = patch["height"]
        merge = own.get("merge_size", values.get("spatial_merge_size", 1))
        values["mmjax"] = {key: value for key, value in own.items() if key not in ("merge_size", "patch_size")}
        return cls(
            steps(values), dict(values["size"]), family, int(own.get("patch_size", patch)), int(merge),
            bool(values.get("do_image_splitting")), float(values.get("padding_value", 1.0)),
        )  # fmt: skip

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = {key: value for key, value in self.image.to_hf().items() if key not in ("size", "crop_size")}
        config |= {"image_processor_type": f"{self.family}ImageProcessor", "size": dict(self.size), "do_pad": True}
        config["mmjax"] = {**config.get("mmjax", {}), "merge_size": self.merge_size, "patch_size": self.patch_size}
        if self.family == "Idefics2":
            return {**config, "do_image_splitting": self.split}
        side = self.patch_size * self.merge_size
        config["patch_size"] = {"height": side, "width": side}
        return {**config, "padding_value": self.padding} if self.family == "Fuyu" else config

    @property
    def item_shape(self) -> None:
        """Depends on the image."""
        return None

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with the recipe's options."""
        return self.image.open(source, name)

    def source_of(self, image: Image.Image) -> Source:
        """The grids in patches of the items that what `open` gave becomes."""
        sizes = []
        for left, top, right, bottom in self._views(image):
            height, width = self._size(bottom - top, right - left)
            count = math.ceil if self.family == "Fuyu" else math.floor
            grid = (1, count(height / self.patch_size), count(width / self.patch_size))
            sizes.append(MediaSize(grid, (bottom - top, right - left)))
        return Source(sizes, ())

    def __call__(self, image: Any, name: str = "") -> list[np.ndarray]:
        """Opens and processes one image; returns the patches of its items, float32 [N, numbers of a patch] each."""
        image = self.open(image, name)
        return [self._patches(image.crop(view), name) for view in self._views(image)]

    def _views(self, image: Image.Image) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) of the parts that are items."""
        width, height = image.size
        whole = [(0, 0, width, height)]
        if not self.split:
            return whole
        middle, centre = height // 2, width // 2
        upper, lower = (0, middle), (middle, height)
        sides = ((0, centre), (centre, width))
        return [(a, top, b, bottom) for top, bottom in (upper, lower) for a, b in sides] + whole

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of some is resized to."""
        if not self.image.do_resize:
            return height, width
        if self.family == "Pixtral":
            return within(height, width, self.size["longest_edge"], self.patch_size * self.merge_size)
        if self.family == "Idefics2":
            return between(height, width, self.size["shortest_edge"], self.size["longest_edge"])
        return inside(height, width, self.size["height"], self.size["width"])

    def _patches(self, image: Image.Image, name: str) -> np.ndarray:
        height, width = self._size(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), resample=self.image.resample)
        pixels = dataclasses.replace(self.image, do_resize=False, do_center_crop=False)(image, name)
        side = self.patch_size
        if self.family == "Pixtral":
            return pack_patches(pixels[None], side, 1, self.merge_size)[0]
        if self.family == "Fuyu":
            filling = self.padding * (self.image.rescale_factor if self.image.do_rescale else 1.0)
            if self.image.do_normalize:
                filling = (filling - np.float32(self.image.image_mean)) / np.float32(self.image.image_std)
            canvas = np.empty((math.ceil(height / side) * side, math.ceil(width / side) * side, 3), np.float32)
            canvas[:] = filling
            canvas[:height, :width] = pixels
            pixels = canvas
        rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
        cut = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        return np.ascontiguousarray(cut).reshape(rows * columns, -1)
