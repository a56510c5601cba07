"""Masks that a model is to draw: the image as the generator's encoder sees it, and where the masks lie in it.

Kirillov et al., 2023, "Segment anything": the longer side is resized, the rest of a square is zeros on the right and
below.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.conversation import Conversation
from mmjax.data.region_places import Placement, image_numbers
from mmjax.data.region_processor import RegionProcessor
from mmjax.data.regions import RegionError
from mmjax.data.targets import TargetArray

# SAM's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class MaskTargets:
    """The recipe of a port of masks.

    Attributes:
        image_size: pixels of a side of the square that the generator's encoder takes.
        mask_size: of a side of the masks that its output is compared with.
        images: the port of the images.
        image_mean, image_std: of pixels from 0 to 1.
    """

    image_size: int = 1024
    mask_size: int = 256
    images: str = "image"
    image_mean: tuple[float, float, float] = MEAN
    image_std: tuple[float, float, float] = STD

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "MaskTargets":
        """What `to_hf` wrote."""
        fields = {key: value for key, value in config.items() if key != "mask_processor_type"}
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        fields = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return {"mask_processor_type": "MaskTargets", **fields}

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `arrays`."""
        side = (self.mask_size, self.mask_size)
        images = TargetArray((self.image_size, self.image_size, 3))
        return {"images": images, "masks": TargetArray(side, each=True), "pixels": TargetArray(side)}

    def inner_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image in its square."""
        scale = self.image_size / max(size)
        height, width = (int(side * scale + 0.5) for side in size)
        return max(height, 1), max(width, 1)

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where an image of (height, width) lies in its square."""
        height, width = self.inner_size(size)
        return Placement((0.0, height / self.image_size), (0.0, width / self.image_size), size)

    def image(self, image: Image.Image) -> np.ndarray:
        """float32 [S, S, 3]."""
        height, width = self.inner_size((image.height, image.width))
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        square = np.zeros((self.image_size, self.image_size, 3), np.float32)
        square[:height, :width] = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return square

    def arrays(self, image: Image.Image, masks: Sequence[Any], name: str) -> dict[str, np.ndarray]:
        """What a row's loss compares with.

        Args:
            image: that all the masks are of.
            masks: `Region`s, or their mappings.
            name: of the sample.

        Returns:
            "images" float32 [S, S, 3]; "masks" float32 [R, h, w]; "pixels" float32 [h, w], 1 where there is image.

        Raises:
            RegionError: naming the mask.
        """
        side = (self.mask_size, self.mask_size)
        recipe, place = RegionProcessor("masks", side), self.placement((image.height, image.width))
        opened = [recipe.open(mask, f"{name} {number}", place) for number, mask in enumerate(masks)]
        drawn = [recipe(one, f"{name} {number}") for number, one in enumerate(opened)]
        middle = (np.arange(self.mask_size) + 0.5) / self.mask_size
        pixels = ((middle < place.down[1])[:, None] & (middle < place.right[1])).astype(np.float32)
        return {"images": self.image(image), "masks": np.stack(drawn), "pixels": pixels}

    def targets(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[Image.Image]]
    ) -> dict[str, np.ndarray] | None:
        """`arrays` of a conversation, or None where nothing is to be drawn.

        Raises:
            RegionError: masks of several images; an image that is not there.
        """
        parts = conversation.media(port)
        if not parts:
            return None
        numbers = image_numbers(conversation, port, self.images)
        if len(set(numbers)) > 1:
            raise RegionError(
                f"{conversation.name}: its masks are of images {sorted(set(numbers))}; those of one conversation are "
                "of one"
            )
        image, sources = opened[self.images][numbers[0] - 1], [part.source for part in parts]
        return self.arrays(image, sources, f"{conversation.name}: {port}")
