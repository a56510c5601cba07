"""Pixtral's image tower inside larger models (transformers' PixtralVisionModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/pixtral
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import ConfigError
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, square
from mmjax.interop.huggingface.vit import three_channels
from mmjax.interop.table import CONV, LINEAR, Linear, Row, Shape

CONFIG = Qwen2VisionConfig
# Of all norms, which no config.json says.
NORM_EPS = 1e-5
# What the tower has beside its sizes.
OPTIONS = {
    "temporal_patch_size": 1,
    "gated": True,
    "norm": "rms",
    "norm_eps": NORM_EPS,
    "bias": False,
    "input_norm": True,
    "one_series": True,
}


@dataclasses.dataclass(frozen=True)
class OneFrame:
    """Ours [1, side, side, channels, D], theirs the kernel of a convolution over images."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return CONV.theirs_shape(ours[1:])

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return CONV.to_ours(theirs, ours[1:])[None]

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return CONV.to_theirs(ours[0])


def vision_from_hf(hf: Mapping[str, Any]) -> Qwen2VisionConfig:
    """A `pixtral` config -> ours; what it leaves out has the defaults of PixtralVisionConfig.

    Raises:
        ConfigError: another kind of tower, or images that do not have three channels.
    """
    kind = hf.get("model_type", "pixtral")
    if kind != "pixtral":
        raise ConfigError(f"config.json: vision_config.model_type {kind!r} is not supported, only 'pixtral'")
    three_channels(hf)
    rope = hf.get("rope_parameters") or {}
    return Qwen2VisionConfig(
        width=hf.get("hidden_size", 1024),
        num_layers=hf.get("num_hidden_layers", 24),
        num_heads=hf.get("num_attention_heads", 16),
        mlp_width=hf.get("intermediate_size", 4096),
        patch_size=square(hf, "patch_size", 16),
        merge_size=1,
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
        **OPTIONS,
    )


def vision_to_hf(config: Qwen2VisionConfig) -> Json:
    """Our config -> the keys of a `pixtral` config; the squares that a projector joins are for the system to say.

    Raises:
        ConfigError: the tower has options that Pixtral has not.
    """
    plain = {"window": None, "patch_bias": False, "position_grid": None}
    other = {key: getattr(config, key) for key, value in {**OPTIONS, **plain}.items() if getattr(config, key) != value}
    if other:
        raise ConfigError(f"transformers' PixtralVisionModel has not {other}")
    return {
        "model_type": "pixtral",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "head_dim": config.width // config.num_heads,
        "intermediate_size": config.mlp_width,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope_theta},
    }


def tower_rows(config: Qwen2VisionConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower; prefixes end in "/" and "."."""
    block, layer = f"{ours}blocks/", theirs + "transformer.layers.{i}."
    rows = [
        Row(f"{ours}patch_embed/kernel", f"{theirs}patch_conv.weight", OneFrame()),
        Row(f"{ours}pre_norm/scale", f"{theirs}ln_pre.weight"),
        Row(f"{block}attn_norm/scale", f"{layer}attention_norm.weight"),
        Row(f"{block}mlp_norm/scale", f"{layer}ffn_norm.weight"),
    ]
    for name in "qkvo":
        transform = Linear(2) if name == "o" else LINEAR
        rows.append(Row(f"{block}attn/{name}/kernel", f"{layer}attention.{name}_proj.weight", transform))
    for name in ("gate", "up", "down"):
        rows.append(Row(f"{block}mlp/{name}/kernel", f"{layer}feed_forward.{name}_proj.weight", LINEAR))
    return rows
