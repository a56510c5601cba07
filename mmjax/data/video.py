"""Videos: the recipe from a video to what an encoder was trained on, frame by frame as transformers has it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.frames import RATED, FrameSampling
from mmjax.data.image import HALF, OPENAI_MEAN, OPENAI_STD, ImageProcessor
from mmjax.data.video_files import VideoError, label_of, read_frames


@dataclasses.dataclass(frozen=True)
class VideoProcessor:
    """The recipe from a video to encoder input; the defaults are VideoMAE's.

    Attributes:
        image: what is done to every frame.
        sampling: which frames are taken.
        offset: whether pixels are shifted by -1 between rescaling and normalising (ViViT).
        as_given: whether all frames are taken of videos that come as lists or arrays of frames; `sampling` is then for
            files.
    """

    image: ImageProcessor = dataclasses.field(default_factory=lambda: _image(FAMILIES["VideoMAE"]))
    sampling: FrameSampling = FrameSampling()
    offset: bool = False
    as_given: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], sampling: FrameSampling | None = None) -> "VideoProcessor":
        """Reads `preprocessor_config.json` or `video_preprocessor_config.json`, or what `processor_config.json` holds.

        Args:
            config: of a processor that treats every frame as an image.
            sampling: where the config has none: transformers mostly leaves it to the caller. Else `FrameSampling()`.

        Raises:
            VideoError: a video processor that is not known here.
            ImageError: one whose steps are not those of `ImageProcessor`.
        """
        config = config.get("video_processor", config.get("image_processor", config))
        keys = ("video_processor_type", "image_processor_type", "feature_extractor_type")
        kind = next((config[key] for key in keys if config.get(key)), "VideoMAEImageProcessor")
        family = re.sub(r"(VideoProcessor|ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
        if family not in FAMILIES:
            raise VideoError(f"video processor {kind!r} is not among the known: {', '.join(FAMILIES)}")
        values = {**FAMILIES[family], **{key: value for key, value in config.items() if value is not None}}
        own = (values.get("mmjax") or {}).get("sampling")
        if own is not None:
            sampling = FrameSampling(**own)
        elif values.get("do_sample_frames") and values.get("fps"):
            sampling = FrameSampling("fps", values.get("num_frames") or 10**6, float(values["fps"]))
        elif values.get("do_sample_frames") and values.get("num_frames"):
            sampling = FrameSampling("starts", values["num_frames"], min_frames=values["num_frames"])
        own = (values.get("mmjax") or {}).get("as_given", family in AS_GIVEN)
        return cls(_image(values), sampling or FrameSampling(), bool(values.get("offset")), bool(own))

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe.

        Raises:
            VideoError: frames are padded to squares, which none of transformers' video processors here does.
        """
        if self.image.pad_to_square:
            raise VideoError("pad_to_square: no video processor of transformers that is known here has it")
        config = {"do_center_crop": False, **self.image.to_hf()}
        config["image_processor_type"] = "VivitImageProcessor" if self.offset else "VideoMAEImageProcessor"
        if self.offset:
            config["offset"] = True
        own = {**(config.get("mmjax") or {}), "as_given": self.as_given}
        return {**config, "mmjax": {**own, "sampling": dataclasses.asdict(self.sampling)}}

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """Shape of every output, or None where it depends on the video."""
        size = self.image.output_size()
        if size is None or self.as_given or self.sampling.policy in RATED:
            return None
        return (self.sampling.num_frames, *size, 3)

    def __call__(self, source: Any, name: str = "", rng: np.random.Generator | None = None) -> np.ndarray:
        """Reads the chosen frames of a video (see `read_frames`); returns float32 [frames, H, W, 3].

        `rng` is for random sampling.

        Raises:
            VideoError: see `read_frames`; or frames that differ in size after processing.
            ImageError: a frame that cannot be decoded.
        """
        whole = self.as_given and isinstance(source, (list, tuple, np.ndarray))
        choose = lambda count, fps: np.arange(count) if whole else self.sampling(count, fps, rng)
        chosen = read_frames(source, choose, name, self.image.max_pixels)
        recipe = self._recipe()
        label = label_of(name, "video")
        pixels = [recipe(frame, f"{label}, frame {place} of {len(chosen)}") for place, frame in enumerate(chosen)]
        sizes = sorted({frame.shape[:2] for frame in pixels})
        if len(sizes) > 1:
            raise VideoError(f"{label}: its frames differ in size: {', '.join(f'{h} x {w}' for h, w in sizes)}")
        return np.stack(pixels)

    def _recipe(self) -> ImageProcessor:
        """That of a frame; a shift before normalising is a shift of the mean."""
        if not self.offset:
            return self.image
        image = self.image
        if not image.do_normalize:
            return dataclasses.replace(image, do_normalize=True, image_mean=(1.0,) * 3, image_std=(1.0,) * 3)
        return dataclasses.replace(image, image_mean=tuple(mean + 1 for mean in image.image_mean))


_SQUARE_224 = {"height": 224, "width": 224}
_CLIP = {"size": {"shortest_edge": 224}, "crop_size": _SQUARE_224, "resample": 3, "do_center_crop": True}
_CLIP |= {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD, "rescale_factor": 1 / 255}
_VIDEOMAE = {**_CLIP, "resample": 2, "image_mean": HALF, "image_std": HALF}
# What each family of transformers' processors assumes for keys that its config leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "VideoMAE": _VIDEOMAE,
    "Vivit": {**_VIDEOMAE, "size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True},
    "Timesformer": {**_VIDEOMAE, "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)},
    "LlavaNextVideo": _CLIP,
    "VideoLlava": _CLIP,
    "LlavaOnevision": {**_CLIP, "size": {"height": 384, "width": 384}, "do_center_crop": False},
    "InstructBlipVideo": {**_CLIP, "size": {"height": 384, "width": 384}, "do_center_crop": False},
}
# Those of models that take videos of any number of frames, which are mostly chosen before.
AS_GIVEN = ("LlavaNextVideo", "VideoLlava", "LlavaOnevision")


def _image(values: Mapping[str, Any]) -> ImageProcessor:
    """The steps of a frame, which are CLIP's with other numbers."""
    own = {key: value for key, value in (values.get("mmjax") or {}).items() if key not in ("sampling", "as_given")}
    return ImageProcessor.from_hf({**values, "image_processor_type": "CLIPImageProcessor", "mmjax": own})
