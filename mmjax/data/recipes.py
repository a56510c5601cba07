"""How media of every kind become arrays: which recipe a preprocessor_config.json names."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.data import own_shape, patches, split, tiles, video, video_items, video_patches
from mmjax.data.audio import AudioProcessor
from mmjax.data.code_images import CodeImages
from mmjax.data.frames import FrameSampling
from mmjax.data.grid_views import GridViewsProcessor
from mmjax.data.image import ImageProcessor
from mmjax.data.items import Layout, MediaSize
from mmjax.data.mask_targets import MaskTargets
from mmjax.data.media_targets import target_recipe
from mmjax.data.own_shape import OwnShapeProcessor
from mmjax.data.patches import PatchesProcessor
from mmjax.data.points import TYPE_KEY, PointProcessor
from mmjax.data.region_processor import RegionProcessor
from mmjax.data.split import SplitProcessor
from mmjax.data.tiles import TilesProcessor
from mmjax.data.vectors import VectorProcessor
from mmjax.data.video import VideoProcessor
from mmjax.data.video_items import VideoItemsProcessor
from mmjax.data.video_patches import VideoPatchesProcessor
from mmjax.data.wording import Source


class Recipe(Protocol):
    """What a processor needs of the media of one port.

    A recipe that makes several items of a source has `source_of(opened)`, which gives a `Source`, in the place of
    `size_of`, and gives a list of arrays.
    """

    def open(self, source: Any, name: str = "") -> Any:
        """Reads a source; errors name it."""

    def size_of(self, opened: Any) -> Sequence[Any]:
        """Grid and original size of what `open` gave, and seconds: a `MediaSize`."""

    def __call__(self, opened: Any) -> np.ndarray:
        """The array of one item."""

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of every array, or None where it depends on the item."""

    def to_hf(self) -> dict[str, Any]:
        """The preprocessor_config.json that says the same."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """Sounds, videos, points and vectors, which are read and processed in one go: their size is known only then.

    Attributes:
        recipe: AudioProcessor, VideoProcessor, PointProcessor or VectorProcessor.
    """

    recipe: Any

    def open(self, source: Any, name: str = "") -> np.ndarray:
        """Reads and processes one item."""
        return self.recipe(source, name)

    @staticmethod
    def size_of(array: np.ndarray) -> tuple[tuple[int, int, int], None]:
        """The grid of a video is its frames; others have none that counts."""
        return (len(array), 1, 1) if array.ndim == 4 else None, None

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """What `open` gave."""
        return array

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of every array, or None where it depends on the item."""
        return self.recipe.item_shape

    def to_hf(self) -> dict[str, Any]:
        """The preprocessor_config.json that says the same."""
        return self.recipe.to_hf()


def source_of(recipe: Recipe, opened: Any) -> Source:
    """What a wording is told of an opened source, tokens left out."""
    if hasattr(recipe, "source_of"):
        return recipe.source_of(opened)
    return Source([MediaSize(*recipe.size_of(opened))], ())


def recipe_from_hf(config: Mapping[str, Any], port: str = "image", layout: Layout | None = None) -> Recipe:
    """The recipe of a preprocessor_config.json, or of one part of a processor_config.json.

    Args:
        config: as transformers or `to_hf` writes it.
        port: what the media are: at "video" an image processor's steps are those of each frame.
        layout: of the port; has the size of a patch, or how many frames a video is, where the processor's files do
            not.

    Raises:
        ImageError, VideoError, ConfigError: a processor that is not known, or steps of one that are not.
    """
    if "region_processor_type" in config:
        return RegionProcessor.from_hf(config)
    if TYPE_KEY in config:
        return Whole(PointProcessor.from_hf(config))
    if "vector_processor_type" in config:
        return Whole(VectorProcessor.from_hf(config))
    if "views_processor_type" in config:
        return GridViewsProcessor.from_hf(config)
    if "code_processor_type" in config:
        return CodeImages.from_hf(config)
    if "target_processor_type" in config:
        return target_recipe(config)
    if "mask_processor_type" in config:
        return MaskTargets.from_hf(config)
    part = next((config[key] for key in (f"{port}_processor", "image_processor") if key in config), config)
    keys = ("video_processor_type", "image_processor_type", "feature_extractor_type")
    kind = next((str(part[key]) for key in keys if part.get(key)), "")
    family = re.sub(r"(VideoProcessor|ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if port == "audio" or "feature_extractor" in config:
        return Whole(AudioProcessor.from_hf(config))
    if port == "video" and family in video_patches.FAMILIES:
        return VideoPatchesProcessor.from_hf(part)
    if port == "video" and family in video_items.FAMILIES:
        return VideoItemsProcessor.from_hf(part)
    # LLaVA-OneVision's images are tiles, its videos frames; the name of their processors is one.
    if port == "video" or (family in video.FAMILIES and family not in tiles.FAMILIES):
        frames = None if layout is None or len(layout.item_shape) != 4 else layout.item_shape[0]
        return Whole(VideoProcessor.from_hf(part, None if frames is None else FrameSampling(num_frames=frames)))
    if family == "Idefics2" and layout is not None:
        part = {"mmjax": {"patch_size": math.isqrt(math.prod(layout.item_shape) // 3)}, **part}
    if family in own_shape.FAMILIES:
        return OwnShapeProcessor.from_hf(part)
    if family in split.FAMILIES:
        return SplitProcessor.from_hf(part)
    if family in patches.FAMILIES:
        return PatchesProcessor.from_hf(part)
    if family in tiles.FAMILIES:
        return TilesProcessor.from_hf(part)
    return ImageProcessor.from_hf(part)
