"""InternViT, the image tower of InternVL: a vision transformer with layer scale (transformers' InternVLVisionModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/internvl
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import mlp_rows, norm_rows, vision_sizes
from mmjax.interop.huggingface.spelling import Json, activation_from_hf, square
from mmjax.interop.huggingface.vit import check_options, embedding_rows, three_channels
from mmjax.interop.table import FLAT, LINEAR, Linear, Row, Squeezed

__all__ = ["tower_rows", "vision_from_hf", "vision_to_hf"]

NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
# Of the norms of queries and keys, whatever config.json says.
QK_NORM_EPS = 1e-6


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `vision_config` -> ViTConfig; what it leaves out has the defaults of InternVLVisionConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels; other norms or positions.
    """
    three_channels(hf)
    norm, qk_norm, eps = hf.get("norm_type", "layer_norm"), hf.get("use_qk_norm", False), hf.get("layer_norm_eps", 1e-6)
    if norm not in NORMS:
        raise ConfigError(f"config.json: vision_config.norm_type {norm!r} is none of {', '.join(NORMS)}")
    if qk_norm and (norm, eps) != ("rms_norm", QK_NORM_EPS):
        raise ConfigError(
            f"config.json: vision_config.use_qk_norm is supported with norm_type 'rms_norm' and layer_norm_eps "
            f"{QK_NORM_EPS} only, not {norm!r} and {eps}"
        )
    if not hf.get("use_absolute_position_embeddings", True):
        raise ConfigError("config.json: vision_config.use_absolute_position_embeddings False is not supported")
    return ViTConfig(
        image_size=square(hf, "image_size", 448),
        patch_size=square(hf, "patch_size", 14),
        width=hf.get("hidden_size", 1024),
        num_layers=hf.get("num_hidden_layers", 24),
        num_heads=hf.get("num_attention_heads", 16),
        mlp_width=hf.get("intermediate_size", 4096),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm=NORMS[norm],
        norm_eps=eps,
        qk_norm=qk_norm,
        pre_norm=False,
        patch_bias=True,
        final_norm=not hf.get("use_mean_pooling", True),
        pool="none",
        qkv_bias=hf.get("attention_bias", False),
        layer_scale=float(hf.get("layer_scale_init_value", 0.1)),
        mask_token=hf.get("use_mask_token", False),
        resize_positions="bicubic",
    )


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `vision_config`.

    Raises:
        ConfigError: the tower has options that InternViT has not.
    """
    check_options("InternVLVisionModel", config, class_token=True, pre_norm=False, patch_bias=True, pool="none",
                  gated=False, num_registers=0, resize_positions="bicubic", projection_dim=None)  # fmt: skip
    if config.layer_scale is None:
        raise ConfigError("transformers' InternVLVisionModel has a layer_scale, this tower has none")
    return {
        **vision_sizes(config),
        "norm_type": {ours: theirs for theirs, ours in NORMS.items()}[config.norm],
        "use_qk_norm": config.qk_norm,
        "use_absolute_position_embeddings": True,
        "attention_bias": config.qkv_bias,
        "layer_scale_init_value": config.layer_scale,
        "use_mask_token": config.mask_token,
        "use_mean_pooling": not config.final_norm,
    }


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower; prefixes end in "/" and "."."""
    mine, layer = f"{ours}blocks/", theirs + "encoder.layer.{i}."
    around = embedding_rows(config, ours, theirs)
    if not config.final_norm:
        around = [row for row in around if not row.ours.startswith(f"{ours}post_norm/")]
    rows = [
        *around,
        *mlp_rows(f"{mine}mlp", f"{layer}mlp"),
        Row(f"{mine}attn/o/kernel", f"{layer}attention.projection_layer.weight", Linear(2)),
        Row(f"{mine}attn/o/bias", f"{layer}attention.projection_layer.bias"),
        Row(f"{mine}attn_scale", f"{layer}lambda_1"),
        Row(f"{mine}mlp_scale", f"{layer}lambda_2"),
    ]
    for half, name in (("attn_norm", "layernorm_before"), ("mlp_norm", "layernorm_after")):
        norm = norm_rows(f"{mine}{half}", f"{layer}{name}")
        rows += norm if config.norm == "layer" else norm[:1]
    if config.qk_norm:
        rows += [Row(f"{mine}attn/{name}_norm/scale", f"{layer}attention.{name}_norm.weight") for name in "qk"]
    for name in "qkv":
        rows.append(Row(f"{mine}attn/{name}/kernel", f"{layer}attention.{name}_proj.weight", LINEAR))
        if config.qkv_bias:
            rows.append(Row(f"{mine}attn/{name}/bias", f"{layer}attention.{name}_proj.bias", FLAT))
    if config.mask_token:
        rows.append(Row(f"{ours}mask_embedding", f"{theirs}embeddings.mask_token", Squeezed((0, 1))))
    return rows
