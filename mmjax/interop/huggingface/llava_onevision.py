"""LLaVA-OneVision (transformers' LlavaOnevisionForConditionalGeneration): images in tiles, and videos.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llava_onevision
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.llava_next import image_token, tiles_from_hf, tiles_rows, tiles_to_hf
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected
from mmjax.model import MultimodalLMConfig

VIDEO = "video"
# LlavaOnevisionConfig's own tower: SigLIP So400m/14 at 384 pixels.
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SIDES = tuple(384 * n for n in range(1, 7))
DEFAULTS = {
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "image_grid_pinpoints": [[height, width] for height in SIDES for width in SIDES],
    "vision_aspect_ratio": "anyres_max_9",
}


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    hf = {**DEFAULTS, **{key: value for key, value in hf.items() if value is not None}}
    most = re.fullmatch(r"anyres_max_(\d+)", hf["vision_aspect_ratio"])
    if most is None:
        raise ConfigError(
            f"config.json: vision_aspect_ratio {hf['vision_aspect_ratio']!r} is not of the form anyres_max_9"
        )
    tower = selected(hf, tower)
    image = tiles_from_hf(hf, tower, width, most_tiles=int(most[1]))
    return {
        "encoders": {PORT: tower, VIDEO: tower},
        "projectors": {PORT: image, VIDEO: dataclasses.replace(image, frames="bilinear")},
        "media_tokens": {
            PORT: image_token(hf, 151646),
            VIDEO: hf.get("video_token_id", hf.get("video_token_index", 151647)),
        },
        "shared": {VIDEO: PORT},
    }


def _write(config: MultimodalLMConfig) -> Json:
    if list(config.encoders) != [PORT, VIDEO] or config.shared != {VIDEO: PORT}:
        raise ConfigError(
            "transformers' LlavaOnevision has the ports image and video with the same parameters, this model has "
            f"{sorted(config.encoders)}, of which shared: {config.shared}"
        )
    keys = tiles_to_hf(config)
    most = config.projectors[PORT].most_tiles
    if most is None:
        raise ConfigError("transformers' LlavaOnevision needs most_tiles at the port 'image'")
    return {
        **keys,
        "vision_aspect_ratio": f"anyres_max_{most}",
        "video_token_id": config.media_tokens[VIDEO],
        "video_token_index": config.media_tokens[VIDEO],
    }


FAMILY = VisionTextFamily(
    kind="llava_onevision",
    architecture="LlavaOnevisionForConditionalGeneration",
    read=_read,
    write=_write,
    rows=tiles_rows,
    pieces=("multi_modal_projector", "image_newline"),
    text="qwen2",
    vision=SIGLIP,
)
