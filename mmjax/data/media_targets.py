"""Media that a model is to make: arrays for its generator's autoencoder, and captions for its text encoder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.audio import open_audio
from mmjax.data.choice_targets import DecisionTargets, RetrievalTargets
from mmjax.data.conversation import Conversation
from mmjax.data.frames import centres
from mmjax.data.image import open_image
from mmjax.data.items import TokenPlanError
from mmjax.data.spectrogram import MelConfig, log_mel
from mmjax.data.targets import TargetArray
from mmjax.data.tokenizer import Tokenizer, load_tokenizer
from mmjax.data.video_files import read_frames

# Tokenizers by where they were read from: a recipe is a value, and says only where its own is.
_TOKENIZERS: dict[str, Tokenizer] = {}


@dataclasses.dataclass(frozen=True)
class MediaTargets:
    """The recipe of a port of media to make. A kind of media has `shape` of one, and `open(source, name)`.

    Attributes:
        captions: directory of the tokenizer of the generator's own text encoder. With one, everything that is to be
            made needs a caption, which the loss aligns conditions with; None reads no captions.
        window: tokens that the encoder reads; longer captions are cut off.
    """

    captions: str | None = None
    window: int = 77

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        return {"target_processor_type": type(self).__name__, **dataclasses.asdict(self)}

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `targets`."""
        specs = {"media": TargetArray(self.shape, each=True)}
        return specs if self.captions is None else specs | {"captions": TargetArray((self.window,), "int32", True)}

    def caption(self, text: str) -> np.ndarray:
        """int32 [window], as the text encoder reads a caption."""
        directory = os.fspath(self.captions)
        if directory not in _TOKENIZERS:
            _TOKENIZERS[directory] = load_tokenizer(directory)
        tokenizer = _TOKENIZERS[directory]
        before, behind = tokenizer.frame
        ids = [*before, *tokenizer.encode(text)[: self.window - len(before) - len(behind)], *behind]
        pad = tokenizer.pad_id or 0
        return np.array([*ids, *[pad] * (self.window - len(ids))], np.int32)

    def targets(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray] | None:
        """The arrays of a conversation, "media" [R, ...] and "captions" [R, T], or None where it has no such parts.

        Raises:
            FileNotFoundError, ImageError, VideoError, AudioError, TokenPlanError: naming what cannot be read, or has no
                caption.
        """
        parts = conversation.media(port)
        if not parts:
            return None
        names = [f"{conversation.name}: {port} {number}" for number in range(len(parts))]
        out = {"media": np.stack([self.open(part.source, name) for part, name in zip(parts, names, strict=True)])}
        if self.captions is not None:
            for part, name in zip(parts, names, strict=True):
                if part.caption is None:
                    raise TokenPlanError(f'{name} has no caption: write {{"type": ..., "path": ..., "caption": "..."}}')
            out["captions"] = np.stack([self.caption(part.caption) for part in parts])
        return out


@dataclasses.dataclass(frozen=True)
class ImageTargets(MediaTargets):
    """Images.

    Attributes:
        height, width: pixels; an image's shorter side is resized to fill them, and what sticks out is cut off evenly.
    """

    height: int = 512
    width: int = 512

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (self.height, self.width, 3)

    def open(self, source: Any, name: str = "") -> np.ndarray:
        """float32 [H, W, 3] from -1 to 1."""
        return filled(open_image(source, name), self.height, self.width)


@dataclasses.dataclass(frozen=True)
class VideoTargets(MediaTargets):
    """Videos, of which frames equally far apart are taken.

    Attributes:
        frames: how many.
        height, width: of a frame, see `ImageTargets`.
    """

    frames: int = 16
    height: int = 320
    width: int = 576

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one video."""
        return (self.frames, self.height, self.width, 3)

    def open(self, source: Any, name: str = "") -> np.ndarray:
        """float32 [T, H, W, 3] from -1 to 1."""
        frames = read_frames(source, lambda count, fps: centres(count, self.frames), name)
        return np.stack([filled(open_image(frame, name), self.height, self.width) for frame in frames])


@dataclasses.dataclass(frozen=True)
class SoundTargets(MediaTargets):
    """Sounds, as the logarithmic mel spectrogram of HiFi-GAN (Kong et al., 2020), which AudioLDM makes.

    Attributes:
        frames, num_mels: of the spectrogram; shorter sounds end in silence, of longer ones the beginning is taken.
        sampling_rate, frame_length, hop_length: of the samples.
        max_frequency: in Hz, where the highest band ends.
    """

    frames: int = 512
    num_mels: int = 64
    sampling_rate: int = 16000
    frame_length: int = 1024
    hop_length: int = 160
    max_frequency: float = 8000.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sound."""
        return (self.frames, self.num_mels, 1)

    @property
    def mel(self) -> MelConfig:
        """The spectrogram's config."""
        return MelConfig(
            self.sampling_rate, self.frame_length, self.hop_length, self.frame_length, self.num_mels, 0.0,
            self.max_frequency, equal_area=True, center=False, offset=1e-9, power=1.0, floor=1e-5,
            logarithm="natural",
        )  # fmt: skip

    def open(self, source: Any, name: str = "") -> np.ndarray:
        """float32 [frames, M, 1]."""
        samples = open_audio(source, self.sampling_rate, name)
        length = self.frames * self.hop_length
        samples = np.pad(samples[:length], (0, max(length - len(samples), 0)))
        # Frame t lies around the middle of its hop.
        samples = np.pad(samples, (self.frame_length - self.hop_length) // 2, mode="reflect")
        return log_mel(samples, self.mel)[:, :, None]


KINDS = {
    kind.__name__: kind for kind in (ImageTargets, VideoTargets, SoundTargets, RetrievalTargets, DecisionTargets)
}


def target_recipe(config: Mapping[str, Any]) -> MediaTargets | RetrievalTargets | DecisionTargets:
    """What `to_hf` wrote.

    Raises:
        ValueError: another kind of target.
    """
    kind = config["target_processor_type"]
    if kind not in KINDS:
        raise ValueError(f"target_processor_type {kind!r} is not known; there are {', '.join(KINDS)}")
    fields = {key: value for key, value in config.items() if key != "target_processor_type"}
    return KINDS[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def shaped(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resized until neither side is shorter, and cut evenly."""
    scale = max(height / image.height, width / image.width)
    size = (max(round(image.width * scale), width), max(round(image.height * scale), height))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))


def filled(image: Image.Image, height: int, width: int) -> np.ndarray:
    """float32 [H, W, 3] from -1 to 1 of what is `shaped`."""
    return np.asarray(shaped(image, height, width), np.float32) / 127.5 - 1
