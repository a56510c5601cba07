"""Qwen3-VL (transformers' Qwen3VLForConditionalGeneration): features of several layers, frames with their times.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen3_vl
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.deepstack import DeepStackConfig
from mmjax.config import ConfigError
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.interop.huggingface import qwen3
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.qwen2_vl import (
    QwenVLFamily,
    linear_rows,
    merger_of,
    rope_with_sections,
    sizes_to_hf,
    tower_sizes,
)
from mmjax.interop.huggingface.spelling import Json, activation_from_hf
from mmjax.interop.huggingface.text import TextFamily
from mmjax.interop.table import Row
from mmjax.projectors.deep_merge import DeepMergeConfig

SECTIONS = (24, 20, 20)
DEFAULTS = {
    **qwen3.FAMILY.defaults,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "rope_theta": 5e5,
}


def _read_text(hf: Mapping[str, Any]) -> dict[str, Any]:
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    sections = tuple(rope.get("mrope_section") or SECTIONS)
    return {"out_bias": hf["attention_bias"], "rope_sections": sections, "rope_interleaved_sections": True}


def _write_text(config: DecoderConfig) -> Json:
    return rope_with_sections(config, {"mrope_interleaved": True})


TEXT = TextFamily(
    kind="qwen3_vl_text",
    architecture="Qwen3VLTextModel",
    names=qwen3.FAMILY.names,
    keys=qwen3.FAMILY.keys,
    defaults=DEFAULTS,
    options=qwen3.FAMILY.options,
    read=_read_text,
    write=_write_text,
)


def _read(hf: Mapping[str, Any]) -> tuple[Qwen2VisionConfig, int, None]:
    positions, layers = hf.get("num_position_embeddings", 2304), hf.get("deepstack_visual_indexes", (8, 16, 24))
    side = int(positions**0.5)
    if side**2 != positions:
        raise ConfigError(f"config.json: num_position_embeddings {positions} is no square number")
    if not layers or list(layers) != sorted(set(layers)):
        raise ConfigError(
            f"config.json: deepstack_visual_indexes {list(layers)} must be one or more layers from first to last"
        )
    tower = Qwen2VisionConfig(
        width=hf.get("hidden_size", 1152),
        mlp_width=hf.get("intermediate_size", 4304),
        activation=activation_from_hf(hf, "hidden_act", "gelu_pytorch_tanh"),
        patch_bias=True,
        position_grid=side,
        feature_layers=(-1, *(layer + 1 for layer in layers)),
        **tower_sizes({"depth": 27, "patch_size": 16, **hf}),
    )
    return tower, hf.get("out_hidden_size", 3584), None


def _write(tower: Qwen2VisionConfig, width: int, per_second: float | None) -> Json:
    if not tower.position_grid or per_second is not None:
        raise ConfigError(
            "transformers' Qwen3VL has a tower with position_grid and no positions_per_second; this has "
            f"position_grid={tower.position_grid}, positions_per_second={per_second}"
        )
    return {
        **sizes_to_hf(tower),
        "model_type": "qwen3_vl_vision",
        "hidden_size": tower.width,
        "out_hidden_size": width,
        "intermediate_size": tower.mlp_width,
        "num_position_embeddings": tower.position_grid**2,
        "deepstack_visual_indexes": [layer - 1 for layer in tower.feature_layers[1:]],
    }


def _projector(tower: Qwen2VisionConfig, width: int) -> DeepMergeConfig:
    return DeepMergeConfig(merger_of(tower, width), len(tower.feature_layers) - 1)


def _projector_rows(tower: Qwen2VisionConfig, ours: str, theirs: str) -> list[Row]:
    names = {"merge": "merger"}
    for layer in range(len(tower.feature_layers) - 1):
        names[f"deep_{layer}"] = f"deepstack_merger_list.{layer}"
    rows = []
    for mine, name in names.items():
        rows += norm_rows(f"{ours}{mine}/norm", f"{theirs}{name}.norm")
        rows += linear_rows(f"{ours}{mine}/fc1", f"{theirs}{name}.linear_fc1")
        rows += linear_rows(f"{ours}{mine}/fc2", f"{theirs}{name}.linear_fc2")
    return rows


FAMILY = QwenVLFamily(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    TEXT,
    _read,
    _write,
    visual="model.visual.",
    model="model.language_model.",
    projector=_projector,
    projector_rows=_projector_rows,
    fusion=lambda tower: DeepStackConfig(len(tower.feature_layers) - 1),
    frames_apart=True,
)
