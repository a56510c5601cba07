"""Idefics3 (transformers' Idefics3ForConditionalGeneration): tiles as images, squares of features joined, one map.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/idefics3

The processor cuts an image into tiles of the tower's size and writes the row and column of each into the text, so a
tile is an item of its own here.
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import idefics_vision
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import LINEAR, Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.downsample import MergeConfig


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    projector = MergeConfig(
        in_width=tower.feature_width,
        width=width,
        factor=hf.get("scale_factor", 2),
        grid=(tower.grid_size, tower.grid_size),
        bias=False,
    )
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: projector},
        "media_tokens": {PORT: hf.get("image_token_id", 128257)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    projector = config.projectors.get(PORT)
    if list(config.encoders) != [PORT] or not isinstance(projector, MergeConfig):
        raise ConfigError(
            f"transformers' Idefics3 joins squares of features at the port {PORT!r} alone, this model has "
            f"{ {port: type(part).__name__ for port, part in config.projectors.items()} }"
        )
    return {"scale_factor": projector.factor, "image_token_id": config.media_tokens[PORT]}


def _rows(config: MultimodalLMConfig) -> list[Row]:
    return [Row(f"projectors/{PORT}/out/kernel", "model.connector.modality_projection.proj.weight", LINEAR)]


def family(kind: str, architecture: str) -> VisionTextFamily:
    """The family under one of its names."""
    return VisionTextFamily(
        kind=kind,
        architecture=architecture,
        read=_read,
        write=_write,
        rows=_rows,
        pieces=("connector",),
        vision=idefics_vision.IDEFICS3,
        towers={PORT: "model.vision_model."},
        tower=idefics_vision,
        language="text_model",
        root="model.",
    )


FAMILY = family("idefics3", "Idefics3ForConditionalGeneration")
