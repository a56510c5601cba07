"""Videos as patches that reach over several frames, in the order in which the towers of Qwen-VL take them.

Wang et al., 2024 ("Qwen2-VL"); Bai et al., 2025 ("Qwen2.5-VL"), which counts time in seconds; and Qwen3-VL, where each
step in time is an item of its own behind its time in the text.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.image import HALF, OPENAI_MEAN, OPENAI_STD, ImageProcessor
from mmjax.data.items import MediaSize
from mmjax.data.patches import LONGEST_RATIO, pack_patches, rounded_size
from mmjax.data.split import steps
from mmjax.data.video_files import VideoError, label_of, read_frames
from mmjax.data.wording import Source

# What transformers' classes assume for keys that a config leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2VL": {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}, "patch_size": 14,
        "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD,
    },
    "Qwen3VL": {
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}, "patch_size": 16,
        "image_mean": HALF, "image_std": HALF,
    },
}  # fmt: skip
# Frames a second that are taken where nothing else is said, and of a video that does not say its own.
RATE, UNKNOWN_RATE = 2.0, 24.0


def clip_size(
    frames: int, height: int, width: int, temporal: int, factor: int, least: int, most: int
) -> tuple[int, int]:
    """The (height, width) nearest in shape whose sides `factor` divides, with bounds for the pixels of all frames.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > LONGEST_RATIO * min(height, width):
        raise VideoError(f"frames of {height} x {width} pixels are more than {LONGEST_RATIO} times as long as wide")
    near = tuple(round(side / factor) * factor for side in (height, width))
    pixels = round(frames / temporal) * temporal * math.prod(near)
    if pixels > most:
        shrink = math.sqrt(frames * height * width / most)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if pixels < least:
        grow = math.sqrt(least / (frames * height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return near


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of a video that were chosen: which of its `count` frames they are, and its frames a second if known."""

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    count: int
    fps: float | None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The first frame, uint8 [H, W, 3], where a video is shown as a picture."""
        return np.array(self.frames[0], dtype)

    @property
    def rate(self) -> float:
        """Frames a second among those that were chosen."""
        return UNKNOWN_RATE if self.fps is None else len(self.indices) / self.count * self.fps


@dataclasses.dataclass(frozen=True)
class VideoPatchesProcessor:
    """The recipe from a video to its patches.

    Frames that come as a list, an array or a folder are taken as they are; of files, `rate` a second.

    Attributes:
        image: how pixels are resampled, rescaled and normalised; its own sizes do not matter.
        min_pixels, max_pixels: bounds; of each frame ("Qwen2VL"), or of all of them together ("Qwen3VL").
        family: "Qwen2VL" or "Qwen3VL", the class of transformers that does the same.
        patch_size, temporal_patch_size, merge_size: see `pack_patches`.
        rate: frames a second.
        min_frames, max_frames: bounds of how many are taken.
    """

    image: ImageProcessor
    min_pixels: int
    max_pixels: int
    family: str = "Qwen2VL"
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    rate: float = RATE
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise VideoError(f"family is {self.family!r}; wanted {' or '.join(FAMILIES)}")
        if not 0 < self.min_pixels <= self.max_pixels or not 0 < self.min_frames <= self.max_frames:
            raise VideoError("min_pixels and max_pixels, min_frames and max_frames: wanted 0 < min <= max")
        for name in ("patch_size", "temporal_patch_size", "merge_size", "rate"):
            if getattr(self, name) <= 0:
                raise VideoError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "VideoPatchesProcessor":
        """Reads `video_preprocessor_config.json`, or the `video_processor` inside `processor_config.json`.

        Raises:
            VideoError: another video processor.
        """
        config = config.get("video_processor", config)
        kind = str(config.get("video_processor_type"))
        family = re.sub(r"VideoProcessor(Fast)?$", "", kind)
        if family not in FAMILIES:
            raise VideoError(f"video processor {kind!r} does not pack patches; known are {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        size = values["size"]
        names = ("patch_size", "temporal_patch_size", "merge_size", "min_frames", "max_frames")
        return cls(
            steps(values),
            int(values.get("min_pixels") or size["shortest_edge"]),
            int(values.get("max_pixels") or size["longest_edge"]),
            family,
            rate=float(values.get("fps") or RATE),
            **{name: int(values[name]) for name in names if name in values},
        )

    def to_hf(self) -> dict[str, Any]:
        """The `video_preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = {key: value for key, value in self.image.to_hf().items() if key not in ("size", "crop_size")}
        del config["image_processor_type"]
        names = ("patch_size", "temporal_patch_size", "merge_size", "min_frames", "max_frames")
        return {
            **config,
            "video_processor_type": f"{self.family}VideoProcessor",
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "fps": self.rate,
            "do_sample_frames": True,
            **{name: getattr(self, name) for name in names},
        }

    @property
    def item_shape(self) -> None:
        """Depends on the video."""
        return None

    def open(self, source: Any, name: str = "") -> Clip:
        """Reads the chosen frames, see `read_frames`.

        Raises:
            FileNotFoundError, VideoError, ImageError: naming the video.
        """
        found: dict[str, Any] = {}

        def choose(count, fps):
            found["count"], found["fps"] = count, fps
            found["indices"] = self.chosen(count, fps)
            return found["indices"]

        frames = read_frames(source, choose, name, self.image.max_pixels)
        label = label_of(name, "video")
        opened = tuple(self.image.open(frame, f"{label}, frame {at}") for at, frame in enumerate(frames))
        if len({frame.size for frame in opened}) > 1:
            sizes = ", ".join(sorted({f"{frame.height} x {frame.width}" for frame in opened}))
            raise VideoError(f"{label}: its frames differ in size: {sizes}")
        return Clip(opened, tuple(int(index) for index in found["indices"]), found["count"], found["fps"])

    def chosen(self, count: int, fps: float | None) -> np.ndarray:
        """Which of `count` frames are taken: all where the frames a second are not known."""
        if fps is None:
            return np.arange(count)
        wanted = count / fps * self.rate
        if self.family == "Qwen3VL":
            wanted = min(max(int(wanted), self.min_frames), self.max_frames, count)
            return np.linspace(0, count - 1, wanted).round().astype(np.int64)
        step = self.temporal_patch_size
        most = min(self.max_frames, count) // step * step
        wanted = max(math.floor(min(max(wanted, self.min_frames), most) / step) * step, 1)
        return (np.arange(wanted) * count / wanted).astype(np.int64)

    def source_of(self, clip: Clip) -> Source:
        """The grid in patches of what `open` gave, or of each of its steps in time, with their times."""
        height, width = self._size(clip)
        steps_in_time = math.ceil(len(clip.frames) / self.temporal_patch_size)
        grid = (steps_in_time, height // self.patch_size, width // self.patch_size)
        original = (clip.frames[0].height, clip.frames[0].width)
        if self.family == "Qwen2VL":
            return Source([MediaSize(grid, original, self.temporal_patch_size / clip.rate)], ())
        # A step stands where the middle of its frames does; the last frame fills up the last step.
        last = clip.indices[-1:] * (steps_in_time * self.temporal_patch_size - len(clip.indices))
        times = np.array([*clip.indices, *last]).reshape(steps_in_time, -1) / (clip.fps or UNKNOWN_RATE)
        seconds = ((times[:, 0] + times[:, -1]) / 2).tolist()
        return Source([MediaSize((1, *grid[1:]), original)] * steps_in_time, (), seconds=seconds)

    def __call__(self, clip: Clip, name: str = "") -> list[np.ndarray]:
        """Patches of what `open` gave, float32 [N, numbers of a patch], of each item."""
        height, width = self._size(clip)
        plain = dataclasses.replace(self.image, do_resize=False, do_center_crop=False)
        frames = [
            frame if frame.size == (width, height) else frame.resize((width, height), resample=self.image.resample)
            for frame in clip.frames
        ]
        pixels = np.stack([plain(frame, name) for frame in frames])
        patches, grid = pack_patches(pixels, self.patch_size, self.temporal_patch_size, self.merge_size)
        return [patches] if self.family == "Qwen2VL" else np.split(patches, grid[0])

    def _size(self, clip: Clip) -> tuple[int, int]:
        """(height, width) in pixels that frames are resized to."""
        height, width = clip.frames[0].height, clip.frames[0].width
        if not self.image.do_resize:
            return height, width
        factor, bounds = self.patch_size * self.merge_size, (self.min_pixels, self.max_pixels)
        if self.family == "Qwen2VL":
            return rounded_size(height, width, factor, *bounds)
        return clip_size(len(clip.frames), height, width, self.temporal_patch_size, factor, *bounds)
