"""ViP-LLaVA (transformers' VipLlavaForConditionalGeneration): LLaVA that sees features of several layers, normed.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/vipllava
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.llava import projector_from_hf, projector_rows, projector_to_hf
from mmjax.interop.huggingface.llava_next import image_token
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected, selection_to_hf
from mmjax.interop.table import Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

LAYERS = (-2, -5, -8, -11, 6)


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    layers = hf.get("vision_feature_layers", hf.get("vision_feature_layer", LAYERS))
    tower = selected({"vision_feature_layer": layers}, tower)
    # This family has no options for the biases of its maps.
    options = {key: value for key, value in hf.items() if key != "multimodal_projector_bias"}
    projector = projector_from_hf(options, tower.feature_width, width)
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: dataclasses.replace(projector, norm_eps=hf.get("projector_layernorm_eps", 1e-5))},
        "media_tokens": {PORT: image_token(hf, 32000)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    tower, projector = config.encoders.get(PORT), config.projectors.get(PORT)
    if list(config.encoders) != [PORT] or not isinstance(tower, ViTConfig):
        raise ConfigError(
            f"transformers' VipLlava has a vision transformer at the port {PORT!r} alone, this model has "
            f"{ {port: type(part).__name__ for port, part in config.encoders.items()} }"
        )
    if not isinstance(projector, MLPProjectorConfig) or projector.norm_eps is None or not projector.bias:
        raise ConfigError(
            f"transformers' VipLlava has a projector of two linear maps with biases behind a norm, not {projector}"
        )
    keys = projector_to_hf(dataclasses.replace(projector, norm_eps=None))
    del keys["multimodal_projector_bias"]
    return {
        **keys,
        "projector_layernorm_eps": projector.norm_eps,
        "vision_feature_layer": selection_to_hf(tower)["vision_feature_layer"],
        "image_token_id": config.media_tokens[PORT],
        "image_token_index": config.media_tokens[PORT],
        "image_seq_length": config.num_tokens(PORT),
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    ours, theirs = f"projectors/{PORT}/", "multi_modal_projector."
    norm = norm_rows(f"{ours}norm", f"{theirs}projector_layernorm")
    return [*norm, *projector_rows(config.projectors[PORT], ours, theirs)]


FAMILY = VisionTextFamily(
    kind="vipllava",
    architecture="VipLlavaForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
)
