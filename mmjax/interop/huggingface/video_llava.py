"""Video-LLaVA (transformers' VideoLlavaForConditionalGeneration): a tower for images, one for frames, one projector.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/video_llava

Frames keep their class token, which images lose.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.llava import projector_from_hf, projector_rows, projector_to_hf
from mmjax.interop.huggingface.llava_next import image_token
from mmjax.interop.huggingface.llava_onevision import VIDEO
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import CLIP_LARGE, PORT, VisionTextFamily, selected, selection_to_hf
from mmjax.model import MultimodalLMConfig


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    tower = selected(hf, tower)
    frame = dataclasses.replace(tower, feature_strategy="full")
    length = hf.get("video_seq_length", 2056)
    frames, rest = divmod(length, frame.num_tokens())
    if rest or not frames:
        raise ConfigError(
            f"config.json: video_seq_length {length} is no whole number of frames of {frame.num_tokens()} features"
        )
    projector = projector_from_hf(hf, tower.feature_width, width)
    return {
        "encoders": {PORT: tower, VIDEO: FramesConfig(frame, frames)},
        "projectors": {PORT: projector, VIDEO: projector},
        "media_tokens": {
            PORT: image_token(hf, 32000),
            VIDEO: hf.get("video_token_id", hf.get("video_token_index", 32001)),
        },
        "shared_projectors": {VIDEO: PORT},
    }


def _write(config: MultimodalLMConfig) -> Json:
    if list(config.encoders) != [PORT, VIDEO] or config.shared_projectors != {VIDEO: PORT}:
        raise ConfigError(
            "transformers' VideoLlava has the ports image and video with one projector, this model has "
            f"{sorted(config.encoders)}, of which shared_projectors: {config.shared_projectors}"
        )
    tower = config.encoders[PORT]
    if not isinstance(tower, ViTConfig):
        raise ConfigError(f"transformers' VideoLlava has a vision transformer, not {type(tower).__name__}")
    return {
        **projector_to_hf(config.projectors[PORT]),
        **selection_to_hf(tower),
        "image_token_id": config.media_tokens[PORT],
        "image_token_index": config.media_tokens[PORT],
        "image_seq_length": config.num_tokens(PORT),
        "video_token_id": config.media_tokens[VIDEO],
        "video_token_index": config.media_tokens[VIDEO],
        "video_seq_length": config.num_tokens(VIDEO),
    }


FAMILY = VisionTextFamily(
    kind="video_llava",
    architecture="VideoLlavaForConditionalGeneration",
    read=_read,
    write=_write,
    rows=lambda config: projector_rows(config.projectors[PORT], f"projectors/{PORT}/"),
    vision={**CLIP_LARGE, "image_size": 224},
    towers={PORT: "image_tower.vision_model.", VIDEO: "video_tower.vision_model."},
)
