"""Mistral Small 3.1 (transformers' Mistral3ForConditionalGeneration): Pixtral's tower, squares joined, Mistral.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/mistral3

The text holds a token of its own behind each row of an image, so the placeholders of an item are no single run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import ConfigError
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.interop.huggingface import pixtral
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.llava import projector_rows
from mmjax.interop.huggingface.llava_next import image_token
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import LINEAR, Row, Shape
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.downsample import MergeConfig


@dataclasses.dataclass(frozen=True)
class ChannelsFirst:
    """Ours reads a square place by place, [area * channels, D]; theirs channel by channel, [D, channels * area]."""

    area: int

    def theirs_shape(self, ours: Shape) -> Shape:
        return LINEAR.theirs_shape(ours)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(len(theirs), -1, self.area).transpose(2, 1, 0).reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.area, -1, ours.shape[-1]).transpose(2, 1, 0).reshape(ours.shape[-1], -1)


def _projector(tower: Qwen2VisionConfig, width: int, eps: float, activation: str, bias: bool) -> MergeConfig:
    """The projector as the family has it."""
    return MergeConfig(
        in_width=tower.feature_width,
        width=width,
        factor=tower.merge_size,
        order="blocks",
        norm="rms",
        norm_at="before",
        norm_eps=eps,
        hidden=width,
        activation=activation,
        bias=bias,
        joined=tower.width,
    )


def _read(hf: Mapping[str, Any], tower: Qwen2VisionConfig, width: int) -> dict[str, Any]:
    if not hf.get("vision_config"):
        raise ConfigError("config.json: vision_config is missing")
    layer = hf.get("vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise ConfigError(f"config.json: vision_feature_layer {layer} is not supported, only one layer")
    tower = dataclasses.replace(tower, merge_size=hf.get("spatial_merge_size", 2), feature_layers=(layer,))
    text = hf.get("text_config") or {}
    eps = TEXT[text.get("model_type", FAMILY.text)].decoder_from_hf(text).norm_eps
    activation = activation_from_hf(hf, "projector_hidden_act", "gelu")
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: _projector(tower, width, eps, activation, hf.get("multimodal_projector_bias", False))},
        "media_tokens": {PORT: image_token(hf, 10)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    tower, projector = config.encoders.get(PORT), config.projectors.get(PORT)
    kinds = isinstance(tower, Qwen2VisionConfig) and isinstance(projector, MergeConfig)
    if list(config.encoders) != [PORT] or not kinds or len(tower.feature_layers) != 1:
        raise ConfigError(
            f"transformers' Mistral3 has Pixtral's tower at the port {PORT!r} alone and joins features of one layer, "
            f"this model has { {port: type(part).__name__ for port, part in config.projectors.items()} }"
        )
    own = config.backbone.width, config.backbone.norm_eps, projector.activation, projector.bias
    wanted = _projector(tower, *own)
    if wanted != projector:
        raise ConfigError(f"transformers' Mistral3 would have the projector {wanted}, this model has {projector}")
    return {
        "vision_feature_layer": tower.feature_layers[0],
        "spatial_merge_size": tower.merge_size,
        "projector_hidden_act": ACTIVATIONS_TO_HF[projector.activation],
        "multimodal_projector_bias": projector.bias,
        "image_token_id": config.media_tokens[PORT],
        "image_token_index": config.media_tokens[PORT],
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    projector, ours, theirs = config.projectors[PORT], f"projectors/{PORT}/", "multi_modal_projector."
    join = ChannelsFirst(projector.factor**2)
    return [
        Row(f"{ours}norm/scale", f"{theirs}norm.weight"),
        Row(f"{ours}join/kernel", f"{theirs}patch_merger.merging_layer.weight", join),
        *projector_rows(projector, ours, theirs),
    ]


FAMILY = VisionTextFamily(
    kind="mistral3",
    architecture="Mistral3ForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    text="mistral",
    vision={},
    tied=True,
    towers={PORT: "vision_tower."},
    tower=pixtral,
)
