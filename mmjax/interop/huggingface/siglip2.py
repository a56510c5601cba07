"""The image tower of SigLIP 2 for images of any shape (NaFlex; transformers' Siglip2VisionModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/siglip2

Checkpoints of SigLIP 2 with one resolution are of the type `siglip`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import siglip
from mmjax.interop.huggingface.clip import IGNORE
from mmjax.interop.huggingface.spelling import Json, fresh, square
from mmjax.interop.table import Linear, Rewrite, Row

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "table"]


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in the pair to those of the tower alone."""
    return [(r"^vision_model\.", "")]


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `siglip2_vision_model` config -> ViTConfig; what it leaves out has the defaults of Siglip2VisionConfig.

    Raises:
        ConfigError: positions that are no square grid, or images that do not have three channels.
    """
    patches, patch = hf.get("num_patches", 256), square(hf, "patch_size", 16)
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ConfigError(f"config.json: num_patches {patches} is no square number, which is not supported")
    tower = siglip.vision_from_hf({**hf, "image_size": side * patch})
    return dataclasses.replace(tower, resize_positions="bilinear_antialias")


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `siglip2_vision_model` config.

    Raises:
        ConfigError: the tower has options that SigLIP 2's has not.
    """
    if config.resize_positions != "bilinear_antialias":
        raise ConfigError(
            f"SigLIP 2's tower has resize_positions 'bilinear_antialias', this has {config.resize_positions!r}"
        )
    out = siglip.vision_to_hf(config)
    del out["image_size"]
    return {**out, "model_type": "siglip2_vision_model", "num_patches": config.num_patches}


def config_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json -> our config."""
    return vision_from_hf(hf)


def config_to_hf(config: ViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {**fresh(template), **vision_to_hf(config), "architectures": ["Siglip2VisionModel"]}


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of SigLIP's tower, but the patch map is a linear one of flattened patches; prefixes end in "/", "."."""
    return [
        dataclasses.replace(row, transform=Linear(3)) if row.ours == f"{ours}patch_embed/kernel" else row
        for row in siglip.tower_rows(config, ours, theirs)
    ]


def table(config: ViTConfig) -> list[Row]:
    """The rows of a tower alone."""
    return tower_rows(config)
