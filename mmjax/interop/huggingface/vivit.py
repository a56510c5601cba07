"""ViViT (transformers' VivitModel), also from the checkpoints of its classifier.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/vivit
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.video_vit import VideoViTConfig
from mmjax.interop.huggingface import vit
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import IGNORE, attention_rows, embedding_rows, half_rows, three_channels
from mmjax.interop.table import LINEAR, Rewrite, Row
from mmjax.interop.tensors import Tensors

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "settle", "table"]

# Their name of the tanh approximation in this family.
GELU = "gelu_fast"


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier, and those in memory, to the names on disk."""
    return [(r"^vivit\.", ""), *vit.rewrites(config)]


def config_from_hf(hf: Mapping[str, Any]) -> VideoViTConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' VivitConfig.

    Raises:
        ConfigError: images or tubelets that are not square, or not of three channels; another pooler.
    """
    three_channels(hf)
    width = hf.get("hidden_size", 768)
    pooler = (hf.get("pooler_output_size") or width, hf.get("pooler_act", "tanh"))
    if pooler != (width, "tanh"):
        raise ConfigError(
            f"config.json: pooler_output_size {pooler[0]} with pooler_act {pooler[1]!r} is not supported, "
            f"only hidden_size ({width}) with 'tanh'"
        )
    tubelet = tuple(hf.get("tubelet_size", (2, 16, 16)))
    if len(tubelet) != 3:
        raise ConfigError(f"config.json: tubelet_size {list(tubelet)} has {len(tubelet)} numbers, not 3")
    activation = "gelu_tanh" if hf.get("hidden_act", GELU) == GELU else activation_from_hf(hf, "hidden_act", GELU)
    bias = hf.get("qkv_bias", True)
    return VideoViTConfig(
        num_frames=hf.get("num_frames", 32),
        image_size=square(hf, "image_size", 224),
        tubelet_size=tubelet[0],
        patch_size=square({"tubelet_size": tubelet[1:]}, "tubelet_size", 16),
        width=width,
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation,
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        positions="learned",
        class_token=True,
        final_norm=True,
        pool="dense",
        qkv_bias=bias,
        key_bias=bias,
    )


def config_to_hf(config: VideoViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that transformers' VivitModel has not.
    """
    wanted = {"positions": ("learned",), "class_token": (True,), "final_norm": (True,), "pool": ("dense", "none")}
    wanted["key_bias"] = (config.qkv_bias,)
    wrong = [
        f"{key}={getattr(config, key)!r} (not {' or '.join(map(repr, values))})"
        for key, values in wanted.items()
        if getattr(config, key) not in values
    ]
    if wrong:
        raise ConfigError(f"this encoder has what transformers' VivitModel has not: {', '.join(wrong)}")
    return {
        **fresh(template),
        "model_type": "vivit",
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "num_channels": 3,
        "tubelet_size": [config.tubelet_size, config.patch_size, config.patch_size],
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": GELU if config.activation == "gelu_tanh" else ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "pooler_output_size": config.width,
        "pooler_act": "tanh",
        "architectures": ["VivitModel"],
    }


def settle(config: VideoViTConfig, tensors: Tensors) -> tuple[VideoViTConfig, Tensors]:
    """Checkpoints of the classifier have no pooler, which config.json does not say."""
    if "pooler.dense.weight" not in tensors:
        config = dataclasses.replace(config, pool="none")
    return config, tensors


def table(config: VideoViTConfig) -> list[Row]:
    """The rows of the tower."""
    block = "encoder.layer.{i}."
    table = [
        *embedding_rows(config, "", ""),
        *attention_rows(config, "blocks/", block + "attention."),
        *half_rows("blocks/", block),
    ]
    if config.pool == "dense":
        table.append(Row("pooler/kernel", "pooler.dense.weight", LINEAR))
        table.append(Row("pooler/bias", "pooler.dense.bias"))
    return table
