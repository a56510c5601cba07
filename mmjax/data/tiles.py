"""Images of any resolution as a view of the whole and tiles (Liu et al., 2024, "LLaVA-NeXT")."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import ImageError, ImageProcessor

FAMILIES = {
    "LlavaNext": {"image_grid_pinpoints": ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))},
    "LlavaOnevision": {
        "image_grid_pinpoints": tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
    },
}


def best_resolution(
    original_size: tuple[int, int], resolutions: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The (height, width) that an image is fitted into: most of its pixels kept, then least empty space.

    Raises:
        ValueError: an image without pixels.
    """
    height, width = (int(side) for side in original_size)
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no tiles")

    def worth(size):
        scale = min(size[1] / width, size[0] / height)
        kept = min(int(width * scale) * int(height * scale), height * width)
        return kept, kept - size[0] * size[1]

    return max(resolutions, key=worth)


@dataclasses.dataclass(frozen=True)
class TilesProcessor:
    """The recipe from an image to its tiles.

    Attributes:
        image: what is done to the view of the whole and to every tile.
        resolutions: (height, width) in pixels that an image may be fitted into.
        family: "LlavaNext" or "LlavaOnevision", the class of transformers that does the same.
    """

    image: ImageProcessor
    resolutions: tuple[tuple[int, int], ...]
    family: str = "LlavaNext"

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ImageError(f"family is {self.family!r}; wanted {' or '.join(FAMILIES)}")
        if not self.resolutions:
            raise ImageError("an image in tiles needs at least one resolution (image_grid_pinpoints)")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "TilesProcessor":
        """Reads `preprocessor_config.json`, or the `image_processor` inside `processor_config.json`.

        Raises:
            ImageError: another image processor, or steps that are not those of `ImageProcessor`.
        """
        config = config.get("image_processor", config)
        kind = str(config.get("image_processor_type"))
        family = re.sub(r"ImageProcessor(Fast|Pil)?$", "", kind)
        if family not in FAMILIES:
            raise ImageError(f"image processor {kind!r} does not make tiles; known are {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        resolutions = tuple(tuple(size) for size in values.pop("image_grid_pinpoints"))
        values |= {"image_processor_type": "CLIPImageProcessor", "do_pad": None}
        return cls(ImageProcessor.from_hf(values), resolutions, family)

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = {"do_center_crop": False, **self.image.to_hf()}
        return {
            **config,
            "image_processor_type": f"{self.family}ImageProcessor",
            "image_grid_pinpoints": [list(size) for size in self.resolutions],
            "do_pad": True,
        }

    @property
    def item_shape(self) -> None:
        """Depends on the image."""
        return None

    @property
    def tile_size(self) -> int:
        """Pixels of a side of a tile before it is processed."""
        image = self.image
        if image.do_center_crop:
            return image.crop_size["height"]
        return image.size.get("height") or image.size["shortest_edge"]

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with the recipe's options."""
        return self.image.open(source, name)

    @staticmethod
    def size_of(image: Image.Image) -> tuple[None, tuple[int, int]]:
        """No grid, and (height, width) in pixels, of what `open` gave."""
        return None, (image.height, image.width)

    def __call__(self, image: Any, name: str = "") -> np.ndarray:
        """Opens and processes one image; returns float32 [tiles, H, W, 3], the view of the whole first."""
        image, size, resample = self.open(image, name), self.image.size, self.image.resample
        height = size.get("height") or size["shortest_edge"]
        width = size.get("width") or size["shortest_edge"]
        views = [image.resize((width, height), resample=resample)]
        rows, columns = best_resolution((image.height, image.width), self.resolutions)
        inner = fitted((image.height, image.width), (rows, columns))
        canvas = Image.new("RGB", (columns, rows))
        canvas.paste(
            image.resize(inner[::-1], resample=resample), ((columns - inner[1]) // 2, (rows - inner[0]) // 2)
        )
        side = self.tile_size
        for top in range(0, rows, side):
            views += [canvas.crop((left, top, left + side, top + side)) for left in range(0, columns, side)]
        return np.stack([self.image(view, name) for view in views])


def fitted(original_size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image scaled to touch two opposite sides of `room`."""
    (height, width), (rows, columns) = original_size, room
    if columns / width < rows / height:
        return min(math.ceil(height * (columns / width)), rows), columns
    return rows, min(math.ceil(width * (rows / height)), columns)
