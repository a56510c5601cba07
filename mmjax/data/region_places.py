"""Where regions are: of which image of a conversation, and where the recipe of that image put what they show.

A recipe pads, resizes and cuts an image before the encoder sees it; `Placement` says where everything went, axis by
axis.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.box_geometry import Size, square_offset
from mmjax.data.conversation import Conversation, MediaPart, Message
from mmjax.data.image import ImageProcessor, resized_size
from mmjax.data.regions import RegionError


class Placement(NamedTuple):
    """Where an image lies in what its recipe makes of it: shares of the sides there are start + scale * shares here.

    Attributes:
        down, right: (start, scale) of the two axes.
        size: (height, width) of the original image in pixels.
    """

    down: tuple[float, float]
    right: tuple[float, float]
    size: Size

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2], x and y as shares of the original image -> shares of the processed one."""
        start, scale = zip(self.right, self.down, strict=True)
        return np.asarray(start) + np.asarray(scale) * points

    def back(self, points: np.ndarray) -> np.ndarray:
        """The way back."""
        start, scale = zip(self.right, self.down, strict=True)
        return (points - np.asarray(start)) / np.asarray(scale)


def placement(recipe: Any, size: Size) -> Placement:
    """Where an image of (height, width) pixels lies in what `recipe` makes of it.

    Args:
        recipe: an ImageProcessor, or None: the array is taken as it is.

    Raises:
        RegionError: another recipe, whose images have no place for regions.
    """
    if recipe is None:
        return Placement((0.0, 1.0), (0.0, 1.0), size)
    if not isinstance(recipe, ImageProcessor):
        raise RegionError(f"regions need images of one size, but their port has a {type(recipe).__name__}")
    # In pixels of every step: where the image begins, and how long it is.
    start, length, sides = [0.0, 0.0], [float(side) for side in size], list(size)
    if recipe.pad_to_square:
        start, sides = [float(at) for at in square_offset(size)], [max(size)] * 2
    if recipe.do_resize:
        target = resized_size(*sides, recipe.size)
        start = [at * new / old for at, new, old in zip(start, target, sides, strict=True)]
        length = [side * new / old for side, new, old in zip(length, target, sides, strict=True)]
        sides = list(target)
    if recipe.do_center_crop:
        target = [recipe.crop_size["height"], recipe.crop_size["width"]]
        for axis, (new, old) in enumerate(zip(target, sides, strict=True)):
            padded = max(new, old)
            start[axis] += (padded - old + 1) // 2 - (padded - new) // 2
        sides = target
    axes = [(at / side, long / side) for at, long, side in zip(start, length, sides, strict=True)]
    return Placement(axes[0], axes[1], size)


def image_numbers(conversation: Conversation, port: str, images: str) -> list[int]:
    """The number, from 1, of the image of each region, in the order of `Conversation.media(port)`.

    Raises:
        RegionError: a region that stands before its image, or whose image is not there.
    """
    name, found = conversation.name, []
    total = len(conversation.media(images))

    def walk(messages: Sequence[Message], latest: int, shown: int) -> tuple[int, int]:
        for message in messages:
            for part in message.parts:
                if isinstance(part, MediaPart) and part.port == images:
                    shown += 1
                    latest = shown
                elif isinstance(part, MediaPart) and part.port == port:
                    asked, where = getattr(part.source, "image", None), f"{name}: {port} {len(found)}"
                    if asked is not None and asked > total:
                        raise RegionError(f"{where} is of image {asked}, but there are {total} image(s)")
                    if (asked or latest) > shown or not (asked or latest):
                        raise RegionError(f"{where} stands before its image; {shown} image(s) stand before it")
                    found.append(asked or latest)
        return latest, shown

    latest, shown = walk(conversation.messages, 0, 0)
    for branch in conversation.branches:
        _, shown = walk(branch, latest, shown)
    return found
