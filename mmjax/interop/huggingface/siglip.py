"""SigLIP: the dual encoder (SiglipModel) and either tower alone.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/siglip
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.dual import DualEncoderConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import (
    IGNORE,
    mlp_rows,
    norm_rows,
    rewrites,
    text_rows,
    text_sizes,
    vision_sizes,
)
from mmjax.interop.huggingface.clip import tower_rows as image_rows
from mmjax.interop.huggingface.spelling import Json, activation_from_hf, fresh, square
from mmjax.interop.table import FLAT, LINEAR, Linear, Part, Row, Squeezed

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "table"]


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `siglip_vision_model` config -> ViTConfig; what it leaves out has the defaults of SiglipVisionConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels.
    """
    if hf.get("num_channels", 3) != 3:
        raise ConfigError(f"config.json: num_channels {hf['num_channels']} is not supported, only 3")
    return ViTConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 16),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf, "hidden_act", "gelu_pytorch_tanh"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        class_token=False,
        pre_norm=False,
        patch_bias=True,
        final_norm=True,
        pool="attention" if hf.get("vision_use_head", True) else "none",
    )


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `siglip_vision_model` config.

    Raises:
        ConfigError: the tower has options that SigLIP's has not.
    """
    mine = (config.class_token, config.pre_norm, config.patch_bias, config.final_norm, config.projection_dim)
    if mine != (False, False, True, True, None) or config.pool == "class":
        raise ConfigError(
            "SigLIP's tower has patch_bias and final_norm, no class_token, pre_norm or projection_dim, "
            f"and pool 'attention' or 'none'; this has patch_bias={mine[2]}, final_norm={mine[3]}, "
            f"class_token={mine[0]}, pre_norm={mine[1]}, projection_dim={mine[4]}, pool={config.pool!r}"
        )
    return {
        "model_type": "siglip_vision_model",
        **vision_sizes(config),
        "vision_use_head": config.pool == "attention",
    }


def text_from_hf(hf: Mapping[str, Any]) -> TextEncoderConfig:
    """A `siglip_text_model` config -> TextEncoderConfig; defaults are those of SiglipTextConfig."""
    width = hf.get("hidden_size", 768)
    return TextEncoderConfig(
        vocab_size=hf.get("vocab_size", 32000),
        width=width,
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        max_positions=hf.get("max_position_embeddings", 64),
        activation=activation_from_hf(hf, "hidden_act", "gelu_pytorch_tanh"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        causal=False,
        pool="last",
        projection_dim=hf.get("projection_size") or width,
        projection_bias=True,
    )


def text_to_hf(config: TextEncoderConfig) -> Json:
    """TextEncoderConfig -> the keys of a `siglip_text_model` config.

    Raises:
        ConfigError: the tower has options that SigLIP's has not.
    """
    if config.causal or config.pool != "last" or not (config.projection_dim and config.projection_bias):
        raise ConfigError(
            "transformers' SigLIP text tower is not causal, pools the last token, projects with a bias"
        )
    return {"model_type": "siglip_text_model", **text_sizes(config), "projection_size": config.projection_dim}


def config_from_hf(hf: Mapping[str, Any]) -> DualEncoderConfig | ViTConfig | TextEncoderConfig:
    """config.json of the pair or of a tower -> our config."""
    if hf["model_type"] == "siglip_vision_model":
        return vision_from_hf(hf)
    if hf["model_type"] == "siglip_text_model":
        return text_from_hf(hf)
    vision, text = hf.get("vision_config") or {}, hf.get("text_config") or {}
    return DualEncoderConfig(vision_from_hf(vision), text_from_hf(text), logit_bias=True)


def config_to_hf(config: Any, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that SigLIP has not.
    """
    out = fresh(template)
    if isinstance(config, ViTConfig):
        return {**out, **vision_to_hf(config), "architectures": ["SiglipVisionModel"]}
    if isinstance(config, TextEncoderConfig):
        return {**out, **text_to_hf(config), "architectures": ["SiglipTextModel"]}
    if not config.logit_bias:
        raise ConfigError("transformers' SigLIP has a logit_bias")
    return {
        **out,
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "vision_config": {**fresh(out.get("vision_config")), **vision_to_hf(config.image)},
        "text_config": {**fresh(out.get("text_config")), **text_to_hf(config.text)},
    }


def head_rows(config: ViTConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of the attention pool, whose q, k and v are one fused matrix on their side."""
    thirds = (config.width,) * 3
    table = [
        Row(f"{ours}head/probe", f"{theirs}head.probe", Squeezed((0,))),
        Row(f"{ours}head/attn/o/kernel", f"{theirs}head.attention.out_proj.weight", Linear(2)),
        Row(f"{ours}head/attn/o/bias", f"{theirs}head.attention.out_proj.bias"),
        *norm_rows(f"{ours}head/norm", f"{theirs}head.layernorm"),
        *mlp_rows(f"{ours}head/mlp", f"{theirs}head.mlp"),
    ]
    for index, name in enumerate("qkv"):
        table.append(
            Row(
                f"{ours}head/attn/{name}/kernel",
                f"{theirs}head.attention.in_proj_weight",
                Part(index, thirds, LINEAR),
            )
        )
        table.append(
            Row(
                f"{ours}head/attn/{name}/bias",
                f"{theirs}head.attention.in_proj_bias",
                Part(index, thirds, FLAT),
            )
        )
    return table


def tower_rows(config: ViTConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of an image tower with its attention pool, if it has one."""
    pool = head_rows(config, ours, theirs) if config.pool == "attention" else []
    return image_rows(config, ours, theirs) + pool


def table(config: DualEncoderConfig | ViTConfig | TextEncoderConfig) -> list[Row]:
    """The rows of the pair, or of a tower alone."""
    pair = isinstance(config, DualEncoderConfig)
    rows = []
    if pair:
        rows += [Row(name, name, Squeezed((0,))) for name in ("logit_scale", "logit_bias")]
    image = config.image if pair else config
    if isinstance(image, ViTConfig):
        rows += tower_rows(image, "image/" if pair else "", "vision_model.")
    if isinstance(config.text if pair else config, TextEncoderConfig):
        ours = "text/" if pair else ""
        rows += text_rows(ours, "text_model.")
        rows.append(Row(f"{ours}projection/kernel", "text_model.head.weight", LINEAR))
        rows.append(Row(f"{ours}projection/bias", "text_model.head.bias"))
    return rows
