"""The image tower of Idefics2, Idefics3 and SmolVLM: SigLIP's, whose positions are looked up by an image's own grid.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/idefics2
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import siglip
from mmjax.interop.huggingface.spelling import Json

__all__ = ["IDEFICS2", "IDEFICS3", "tower_rows", "vision_from_hf", "vision_to_hf"]

# What the families' own config classes assume beside SigLIP's defaults.
IDEFICS2 = {"patch_size": 32}
IDEFICS3 = {"patch_size": 32, "hidden_size": 1152, "num_attention_heads": 16}
tower_rows = siglip.tower_rows


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `vision_config` -> ViTConfig, whose features are those behind the last norm.

    Raises:
        ConfigError: positions that are no square grid, or images that do not have three channels.
    """
    tower = siglip.vision_from_hf({**hf, "vision_use_head": False})
    return dataclasses.replace(tower, resize_positions="floor", feature_norm=True)


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `vision_config`.

    Raises:
        ConfigError: the tower has options that these families have not.
    """
    mine = (config.resize_positions, config.feature_norm, config.pool)
    if mine != ("floor", True, "none"):
        raise ConfigError(
            "Idefics' tower has resize_positions 'floor', feature_norm and pool 'none'; this has "
            f"resize_positions={mine[0]!r}, feature_norm={mine[1]}, pool={mine[2]!r}"
        )
    keys = siglip.vision_to_hf(config)
    return {key: value for key, value in keys.items() if key not in ("model_type", "vision_use_head")}
