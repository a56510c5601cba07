"""InternVL 1.5 to 3.5 (transformers' InternVLForConditionalGeneration): InternViT, pixel shuffle, two maps, an LLM.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/internvl

The processor gives tiles of images and frames of videos alike as pixel_values; each is an item of its own here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import internvl_vision
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.llava import projector_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected, selection_to_hf
from mmjax.interop.table import Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.downsample import MergeConfig

# Of the projector's norm, which no config.json says.
NORM_EPS = 1e-5


def _projector(tower: ViTConfig, width: int, factor: int, activation: str) -> MergeConfig:
    """The projector as the family has it."""
    return MergeConfig(
        in_width=tower.feature_width,
        width=width,
        factor=factor,
        grid=(tower.grid_size, tower.grid_size),
        norm_at="after",
        norm_eps=NORM_EPS,
        hidden=width,
        activation=activation,
    )


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    layer, ratio = hf.get("vision_feature_layer", -1), hf.get("downsample_ratio", 0.5)
    if not isinstance(layer, int):
        raise ConfigError(f"config.json: vision_feature_layer {layer} is not supported, only one layer")
    tower = selected({**hf, "vision_feature_layer": layer}, tower)
    # The last layer's features, and no other's, go through the norm behind the blocks where there is one.
    tower = dataclasses.replace(tower, feature_norm=tower.final_norm and layer == -1)
    factor = round(1 / ratio)
    if factor * ratio != 1:
        raise ConfigError(f"config.json: downsample_ratio {ratio} is not one over a whole number")
    projector = _projector(tower, width, factor, activation_from_hf(hf, "projector_hidden_act", "gelu"))
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: projector},
        "media_tokens": {PORT: hf.get("image_token_id", 151667)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    tower, projector = config.encoders.get(PORT), config.projectors.get(PORT)
    kinds = isinstance(tower, ViTConfig) and isinstance(projector, MergeConfig)
    if list(config.encoders) != [PORT] or not kinds:
        raise ConfigError(
            f"transformers' InternVL joins squares of features at the port {PORT!r} alone, this model has "
            f"{ {port: type(part).__name__ for port, part in config.projectors.items()} }"
        )
    wanted = _projector(tower, config.backbone.width, projector.factor, projector.activation)
    if wanted != projector:
        raise ConfigError(f"transformers' InternVL would have the projector {wanted}, this model has {projector}")
    return {
        **selection_to_hf(tower),
        "projector_hidden_act": ACTIVATIONS_TO_HF[projector.activation],
        "downsample_ratio": 1 / projector.factor,
        "image_token_id": config.media_tokens[PORT],
        "image_seq_length": config.num_tokens(PORT),
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    ours, theirs = f"projectors/{PORT}/", "multi_modal_projector."
    norm = norm_rows(f"{ours}norm", f"{theirs}layer_norm")
    return [*norm, *projector_rows(config.projectors[PORT], ours, theirs)]


FAMILY = VisionTextFamily(
    kind="internvl",
    architecture="InternVLForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    text="qwen2",
    vision={},
    tied=True,
    towers={PORT: "vision_tower."},
    tower=internvl_vision,
)
