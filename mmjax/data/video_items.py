"""Videos whose frames are images to the model, each an item of the images' port; what they are in time, the text says.

Chen et al., 2024 ("InternVL 1.5"); Marafioti et al., 2025 ("SmolVLM"). A frame goes the way of an image without tiles.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.frames import FrameSampling
from mmjax.data.image import OPENAI_MEAN, OPENAI_STD
from mmjax.data.items import MediaSize
from mmjax.data.split import SplitProcessor
from mmjax.data.video_files import VideoError, read_frames
from mmjax.data.video_patches import UNKNOWN_RATE, Clip
from mmjax.data.wording import Source

# What transformers' classes assume for keys that a config leaves out, and whose steps are those of a frame.
FAMILIES: dict[str, dict[str, Any]] = {
    "InternVL": {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": 384, "width": 384},
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
        "crop_to_patches": False,
    },
    "SmolVLM": {
        "image_processor_type": "SmolVLMImageProcessor",
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": False,
    },
}
# What an image's config says that a video's has no use for.
DROPPED = ("image_processor_type", "crop_to_patches", "min_patches", "max_patches", "do_image_splitting")
# SmolVLM2 as published: a frame a second.
RATE, MOST = 1.0, 64


@dataclasses.dataclass(frozen=True)
class VideoItemsProcessor:
    """The recipe from a video to its frames as items.

    Attributes:
        frame: of a frame, which it does not cut into tiles.
        family: "InternVL" or "SmolVLM", the class of transformers that does the same.
        sampling: which frames of a file are taken. Of lists and arrays, which hold frames that were chosen, all are.
    """

    frame: SplitProcessor
    family: str = "InternVL"
    sampling: FrameSampling = FrameSampling()

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise VideoError(f"family is {self.family!r}; wanted {' or '.join(FAMILIES)}")
        if self.frame.split:
            raise VideoError("frames of a video are not split into tiles")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "VideoItemsProcessor":
        """Reads `video_preprocessor_config.json`, or the `video_processor` inside `processor_config.json`.

        Raises:
            VideoError: another video processor.
            ImageError: sizes that are not understood.
        """
        config = config.get("video_processor", config)
        kind = str(config.get("video_processor_type"))
        family = re.sub(r"VideoProcessor$", "", kind)
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise VideoError(f"video processor {kind!r} does not make images of frames; known are {known}")
        given = {key: value for key, value in config.items() if value is not None}
        video = given.get("video_sampling") or {}
        if "video_size" in video and "size" not in given:
            given["size"] = video["video_size"]
        own = {key: value for key, value in given.items() if key not in DROPPED}
        frame = SplitProcessor.from_hf({**FAMILIES[family], **own})
        own = (given.get("mmjax") or {}).get("sampling")
        if own is not None:
            return cls(frame, family, FrameSampling(**own))
        count, fps = video.get("max_frames", given.get("num_frames")), video.get("fps", given.get("fps"))
        if family == "SmolVLM":
            return cls(frame, family, FrameSampling("inner_fps", count or MOST, float(fps or RATE)))
        if given.get("do_sample_frames") and count:
            return cls(frame, family, FrameSampling("uniform", count, min_frames=count))
        if given.get("do_sample_frames") and fps:
            return cls(frame, family, FrameSampling("centres_fps", 10**6, float(fps)))
        return cls(frame, family)

    def to_hf(self) -> dict[str, Any]:
        """The `video_preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = {key: value for key, value in self.frame.to_hf().items() if key not in DROPPED}
        own = {**(config.get("mmjax") or {}), "sampling": dataclasses.asdict(self.sampling)}
        return {**config, "video_processor_type": f"{self.family}VideoProcessor", "mmjax": own}

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """Shape of every frame."""
        return self.frame.item_shape

    def open(self, source: Any, name: str = "") -> Clip:
        """Reads the chosen frames, see `read_frames`.

        Raises:
            FileNotFoundError, VideoError, ImageError: naming the video.
        """
        found: dict[str, Any] = {}
        whole = isinstance(source, (list, tuple, np.ndarray))

        def choose(count, fps):
            found["count"], found["fps"] = count, fps
            found["indices"] = np.arange(count) if whole else self.sampling(count, fps)
            return found["indices"]

        frames = read_frames(source, choose, name, self.frame.image.max_pixels)
        label = name or "video"
        opened = tuple(self.frame.open(frame, f"{label}, frame {at}") for at, frame in enumerate(frames))
        return Clip(opened, tuple(int(index) for index in found["indices"]), found["count"], found["fps"])

    def source_of(self, clip: Clip) -> Source:
        """An item a frame, and when it stands in the video."""
        rate = clip.fps or UNKNOWN_RATE
        seconds = [index / rate for index in clip.indices]
        lasts = clip.count / clip.fps if clip.fps else seconds[-1]
        sizes = [MediaSize(None, (frame.height, frame.width)) for frame in clip.frames]
        return Source(sizes, (), seconds=seconds, lasts=lasts)

    def __call__(self, clip: Clip, name: str = "") -> list[np.ndarray]:
        """The frames of what `open` gave, float32 [H, W, 3] each."""
        return [self.frame(frame, name)[-1] for frame in clip.frames]
