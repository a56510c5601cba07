"""Janus' image tower: SigLIP's, with another name for one of its maps (transformers' JanusVisionModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/janus
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import siglip
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.table import Row

__all__ = ["tower_rows", "vision_from_hf", "vision_to_hf"]


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `janus_vision_model` config -> ViTConfig; what it leaves out has the defaults of JanusVisionConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels; attention with norms or without biases.
    """
    for key, only in (("use_qk_norm", False), ("attention_bias", True)):
        if hf.get(key, only) != only:
            raise ConfigError(f"config.json: vision_config.{key} {hf[key]!r} is not supported, only {only}")
    defaults = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 384}
    sizes = {**defaults, "hidden_act": "gelu", **hf, "vision_use_head": False}
    tower = siglip.vision_from_hf({**sizes, "intermediate_size": int(sizes["hidden_size"] * hf.get("mlp_ratio", 4.0))})
    return dataclasses.replace(tower, feature_norm=True)


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `janus_vision_model` config.

    Raises:
        ConfigError: the tower has options that Janus' has not.
    """
    if config.pool != "none" or not config.feature_norm or config.feature_layers != (-1,):
        raise ConfigError(
            f"Janus' tower gives its last layer's features, normed and not pooled; this has pool {config.pool!r}, "
            f"feature_norm {config.feature_norm}, feature_layers {list(config.feature_layers)}"
        )
    keys = siglip.vision_to_hf(config)
    del keys["vision_use_head"], keys["intermediate_size"]
    return {
        **keys,
        "model_type": "janus_vision_model",
        "mlp_ratio": config.mlp_width / config.width,
        "attention_bias": True,
        "use_qk_norm": False,
    }


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower; prefixes end in "/" and "."."""
    spelled = lambda name: name.replace("self_attn.out_proj.", "self_attn.projection_layer.")
    return [dataclasses.replace(row, theirs=spelled(row.theirs)) for row in siglip.tower_rows(config, ours, theirs)]
