"""Images cut into tiles of one size, each an item of its own for the model, with a view of the whole behind them.

Two ways to the canvas that is cut: the arrangement of tiles nearest in shape (Chen et al., 2024, "InternVL 1.5"), and
the image at a length of its longer side, rounded up to whole tiles (Laurençon et al., 2024, "Idefics3").
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
from mmjax.data.wording import Source

_TILES = {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}, "do_image_splitting": True}
_TILES |= {"image_mean": HALF, "image_std": HALF, "resample": 1}
# What transformers' classes assume for keys that a config leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "GotOcr2": {
        "size": {"height": 384, "width": 384},
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "Idefics3": _TILES,
    "SmolVLM": {**_TILES, "max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 4 * 512}},
}
# No side is resized beyond it.
LONGEST = 4096


def nearest_arrangement(height: int, width: int, tile: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """(rows, columns) of `least` to `most` tiles nearest in shape to an image.

    Of arrangements that are equally near, a larger one is taken as long as the image has more than half its pixels.
    """
    found, near = (1, 1), math.inf
    for count in range(least, most + 1):
        for columns in (columns for columns in range(1, count + 1) if count % columns == 0):
            rows = count // columns
            apart = abs(width / height - columns / rows)
            if apart < near or (apart == near and height * width > 0.5 * tile[0] * tile[1] * count):
                found, near = (rows, columns), apart
    return found


def at_longest(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the longer side at `longest`, the other even, neither beyond LONGEST."""
    ratio = width / height
    if width >= height:
        height, width = int(longest / ratio), longest
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LONGEST:
        height, width = int(LONGEST / ratio), LONGEST
    elif height > width and height > LONGEST:
        height, width = LONGEST, int(LONGEST * ratio)
    return max(height, 1), max(width, 1)


def whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """(height, width) in whole tiles: the longer side rounded up, the other as the shape then says, rounded up too."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile


@dataclasses.dataclass(frozen=True)
class SplitProcessor:
    """The recipe from an image to its tiles.

    Attributes:
        image: how pixels are resampled, rescaled and normalised; its own sizes do not matter.
        tile: (height, width) of a tile in pixels.
        family: "GotOcr2", "Idefics3" or "SmolVLM", the class of transformers that does the same.
        split: whether there are tiles; else there is the view of the whole alone.
        min_tiles, max_tiles: of an arrangement ("GotOcr2").
        longest: pixels of the longer side before it is cut (the others); None leaves it as it is.
    """

    image: ImageProcessor
    tile: tuple[int, int]
    family: str = "GotOcr2"
    split: bool = True
    min_tiles: int = 1
    max_tiles: int = 12
    longest: int | None = None

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ImageError(f"family is {self.family!r}; wanted {' or '.join(FAMILIES)}")
        if not 1 <= self.min_tiles <= self.max_tiles or min(self.tile) < 1:
            raise ImageError(
                f"{self.min_tiles} to {self.max_tiles} tiles of {self.tile} pixels: wanted 1 <= min <= max"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "SplitProcessor":
        """Reads `preprocessor_config.json`, or the `image_processor` inside `processor_config.json`.

        Raises:
            ImageError: another image processor, or sizes that are not understood.
        """
        config = config.get("image_processor", config)
        kind = str(config.get("image_processor_type"))
        family = re.sub(r"ImageProcessor(Fast|Pil)?$", "", kind)
        if family not in FAMILIES:
            raise ImageError(f"image processor {kind!r} does not split images; known are {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        size, image = values["size"], steps(values)
        if family == "GotOcr2":
            if not {"height", "width"} <= set(size):
                raise ImageError(f"image processor {kind!r}: size is {size}; wanted height and width")
            split, counts = bool(values["crop_to_patches"]), (int(values["min_patches"]), int(values["max_patches"]))
            return cls(image, (size["height"], size["width"]), family, split and counts[1] > 1, *counts)
        side = int(values["max_image_size"]["longest_edge"])
        if values.get("do_resize", True) and "longest_edge" not in size:
            raise ImageError(f"image processor {kind!r}: size is {size}; wanted longest_edge")
        longest = int(size["longest_edge"]) if values.get("do_resize", True) else None
        return cls(image, (side, side), family, bool(values["do_image_splitting"]), longest=longest)

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = {key: value for key, value in self.image.to_hf().items() if key not in ("size", "crop_size")}
        config |= {"image_processor_type": f"{self.family}ImageProcessor", "do_resize": True}
        if self.family == "GotOcr2":
            size = {"height": self.tile[0], "width": self.tile[1]}
            counts = {"min_patches": self.min_tiles, "max_patches": self.max_tiles}
            return {**config, "size": size, "crop_to_patches": self.split, **counts}
        config |= {"max_image_size": {"longest_edge": self.tile[0]}, "do_image_splitting": self.split}
        config |= {"do_resize": self.longest is not None}
        return {**config, "do_pad": True, **({"size": {"longest_edge": self.longest}} if self.longest else {})}

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """Shape of every tile."""
        return (*self.tile, 3)

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with the recipe's options."""
        return self.image.open(source, name)

    def source_of(self, image: Image.Image) -> Source:
        """How many tiles, in which rows and columns, what `open` gave becomes."""
        rows, columns = self.arrangement(image)
        size = MediaSize(None, (image.height, image.width))
        return Source([size] * (rows * columns + 1), (), rows, columns)

    def arrangement(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of the tiles beside the view of the whole; (0, 0) where there is that alone."""
        if not self.split:
            return 0, 0
        if self.family == "GotOcr2":
            found = nearest_arrangement(image.height, image.width, self.tile, self.min_tiles, self.max_tiles)
        else:
            height, width = self._canvas(image)
            found = height // self.tile[0], width // self.tile[1]
        return (0, 0) if found == (1, 1) else found

    def __call__(self, image: Any, name: str = "") -> list[np.ndarray]:
        """Opens and processes one image; returns its tiles row by row, then the whole, float32 [H, W, 3] each."""
        image = self.open(image, name)
        rows, columns = self.arrangement(image)
        (height, width), resample = self.tile, self.image.resample
        canvas = image
        if self.family == "GotOcr2" and rows:
            canvas = image.resize((columns * width, rows * height), resample=resample)
        elif self.family != "GotOcr2":
            if self.longest is not None:
                canvas = canvas.resize(at_longest(image.height, image.width, self.longest)[::-1], resample=resample)
            if self.split:
                canvas = canvas.resize(self._canvas(image)[::-1], resample=resample)
        views = [
            canvas.crop((left, top, left + width, top + height))
            for top in range(0, rows * height, height)
            for left in range(0, columns * width, width)
        ]
        whole = image if self.family == "GotOcr2" else canvas
        if whole.size != (width, height):
            whole = whole.resize((width, height), resample=resample)
        plain = dataclasses.replace(self.image, do_resize=False, do_center_crop=False)
        return [plain(view, name) for view in (*views, whole)]

    def _canvas(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) in pixels of what is cut into tiles."""
        size = (image.height, image.width)
        return whole_tiles(*(size if self.longest is None else at_longest(*size, self.longest)), self.tile[0])


def steps(values: Mapping[str, Any]) -> ImageProcessor:
    """What is done to pixels, of a config's other keys; the size stands for one that every image has its own of."""
    known = {field.name for field in dataclasses.fields(ImageProcessor)} - {"size", "crop_size", "do_pad"} | {"mmjax"}
    given = {"size": {"shortest_edge": 1}, **{key: value for key, value in values.items() if key in known}}
    return ImageProcessor.from_hf({**given, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False})
