"""LLaVA-NeXT-Video (transformers' LlavaNextVideoForConditionalGeneration): images in tiles, frames pooled two by two.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llava_next_video
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.llava_next import image_token, tiles_from_hf, tiles_rows, tiles_to_hf
from mmjax.interop.huggingface.llava_onevision import VIDEO
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected
from mmjax.model import MultimodalLMConfig

# How frames are pooled: the other modes of transformers, "max" and "conv", no published checkpoint has.
POOLING = {"spatial_pool_mode": "average", "spatial_pool_stride": 2}


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    for key, supported in POOLING.items():
        if hf.get(key, supported) != supported:
            raise ConfigError(f"config.json: {key} {hf[key]!r} is not supported, only {supported!r}")
    tower = selected(hf, tower)
    image = tiles_from_hf(hf, tower, width)
    return {
        "encoders": {PORT: tower, VIDEO: tower},
        "projectors": {PORT: image, VIDEO: dataclasses.replace(image, frames="average_first")},
        "media_tokens": {
            PORT: image_token(hf, 32001),
            VIDEO: hf.get("video_token_id", hf.get("video_token_index", 32000)),
        },
        "shared": {VIDEO: PORT},
    }


def _write(config: MultimodalLMConfig) -> Json:
    if list(config.encoders) != [PORT, VIDEO] or config.shared != {VIDEO: PORT}:
        raise ConfigError(
            "transformers' LlavaNextVideo has the ports image and video with the same parameters, this model has "
            f"{sorted(config.encoders)}, of which shared: {config.shared}"
        )
    return {
        **tiles_to_hf(config),
        **POOLING,
        "video_token_id": config.media_tokens[VIDEO],
        "video_token_index": config.media_tokens[VIDEO],
    }


FAMILY = VisionTextFamily(
    kind="llava_next_video",
    architecture="LlavaNextVideoForConditionalGeneration",
    read=_read,
    write=_write,
    rows=tiles_rows,
    pieces=("multi_modal_projector", "image_newline"),
)
