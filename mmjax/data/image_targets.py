"""Images that a model is to make: arrays for its generator's autoencoder, captions for its text encoder."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.conversation import Conversation
from mmjax.data.image import open_image
from mmjax.data.items import TokenPlanError
from mmjax.data.targets import TargetArray
from mmjax.data.tokenizer import Tokenizer, load_tokenizer

# Tokenizers by where they were read from: a recipe is a value, and says only where its own is.
_TOKENIZERS: dict[str, Tokenizer] = {}


@dataclasses.dataclass(frozen=True)
class ImageTargets:
    """The recipe of a port of images to make.

    Attributes:
        height, width: pixels; an image's shorter side is resized to fill them, and what sticks out is cut off evenly.
        captions: directory of the tokenizer of the generator's own text encoder. With one, every image to make needs a
            caption, which the loss aligns conditions with; None reads no captions.
        window: tokens that the encoder reads; longer captions are cut off.
    """

    height: int = 512
    width: int = 512
    captions: str | None = None
    window: int = 77

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ImageTargets":
        """What `to_hf` wrote."""
        return cls(**{key: value for key, value in config.items() if key != "target_processor_type"})

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        return {"target_processor_type": "ImageTargets", **dataclasses.asdict(self)}

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `targets`."""
        specs = {"media": TargetArray((self.height, self.width, 3), each=True)}
        return specs if self.captions is None else specs | {"captions": TargetArray((self.window,), "int32", True)}

    def image(self, source: Any, name: str = "") -> np.ndarray:
        """float32 [H, W, 3] from -1 to 1.

        Raises:
            FileNotFoundError, ImageError: naming it.
        """
        image = open_image(source, name)
        scale = max(self.height / image.height, self.width / image.width)
        size = (max(round(image.width * scale), self.width), max(round(image.height * scale), self.height))
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        image = image.resize(size, Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + self.width, top + self.height))
        return np.asarray(image, np.float32) / 127.5 - 1

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
        """The arrays of a conversation, "media" [R, H, W, 3] and "captions" [R, T], or None where it has no such parts.

        Raises:
            FileNotFoundError, ImageError, TokenPlanError: naming the image, or that which has no caption.
        """
        parts = conversation.media(port)
        if not parts:
            return None
        names = [f"{conversation.name}: {port} {number}" for number in range(len(parts))]
        out = {"media": np.stack([self.image(part.source, name) for part, name in zip(parts, names, strict=True)])}
        if self.captions is not None:
            for part, name in zip(parts, names, strict=True):
                if part.caption is None:
                    raise TokenPlanError(f'{name} has no caption: write {{"type": "image", ..., "caption": "..."}}')
            out["captions"] = np.stack([self.caption(part.caption) for part in parts])
        return out
