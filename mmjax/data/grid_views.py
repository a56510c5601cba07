"""An image as a view of the whole and a fixed grid of tiles, one array (Li et al., 2024, "Monkey")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import ImageError, ImageProcessor

KEY, NAME = "views_processor_type", "GridViewsProcessor"


@dataclasses.dataclass(frozen=True)
class GridViewsProcessor:
    """The recipe from an image to [1 + rows * columns, side, side, 3]: the whole, then its tiles row by row.

    Attributes:
        side: pixels of a side of a view; both edges of the image are resized, to it and to the size of all tiles.
        rows, columns: of tiles.
        image: how pixels are resampled, rescaled and normalised; its sizes do not matter.
    """

    side: int
    rows: int
    columns: int
    image: ImageProcessor = dataclasses.field(default_factory=ImageProcessor)

    def __post_init__(self):
        for name in ("side", "rows", "columns"):
            if getattr(self, name) < 1:
                raise ImageError(f"views of an image: {name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "GridViewsProcessor":
        """What `to_hf` wrote; the keys besides `side`, `rows` and `columns` are those of an image processor.

        Raises:
            ImageError: another processor, or steps that are not those of `ImageProcessor`.
        """
        if config.get(KEY) != NAME:
            raise ImageError(f"{KEY} is {config.get(KEY)!r}; wanted {NAME!r}")
        sizes = {name: int(config[name]) for name in ("side", "rows", "columns")}
        steps = {key: value for key, value in config.items() if key not in (KEY, *sizes)}
        return cls(**sizes, image=ImageProcessor.from_hf({**steps, "image_processor_type": "CLIPImageProcessor"}))

    def to_hf(self) -> dict[str, Any]:
        """What `from_hf` reads back to the same recipe."""
        sizes = {"side": self.side, "rows": self.rows, "columns": self.columns}
        steps = {key: value for key, value in self.image.to_hf().items() if key != "image_processor_type"}
        return {KEY: NAME, **sizes, **steps}

    @property
    def item_shape(self) -> tuple[int, int, int, int]:
        """Shape of every array."""
        return (1 + self.rows * self.columns, self.side, self.side, 3)

    def open(self, source: Any, name: str = "") -> Image.Image:
        """`open_image` with the recipe's options."""
        return self.image.open(source, name)

    @staticmethod
    def size_of(image: Image.Image) -> tuple[None, tuple[int, int]]:
        """No grid, and (height, width) in pixels, of what `open` gave."""
        return None, (image.height, image.width)

    def __call__(self, image: Any, name: str = "") -> np.ndarray:
        """Opens and processes one image; float32 of `item_shape`."""
        image = self.open(image, name)
        whole = self._resized(image, 1, 1, name)
        tiles = self._resized(image, self.rows, self.columns, name)
        tiles = tiles.reshape(self.rows, self.side, self.columns, self.side, 3).swapaxes(1, 2)
        return np.concatenate([whole[None], tiles.reshape(-1, self.side, self.side, 3)])

    def _resized(self, image: Image.Image, rows: int, columns: int, name: str) -> np.ndarray:
        size = {"height": rows * self.side, "width": columns * self.side}
        recipe = dataclasses.replace(self.image, do_resize=True, do_center_crop=False, pad_to_square=False, size=size)
        return recipe(image, name)
