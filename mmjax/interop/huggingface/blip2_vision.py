"""The image tower of BLIP-2 (transformers' Blip2VisionModel), which is EVA-CLIP's ViT-g.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/blip_2
"""

from collections.abc import Mapping
from typing import Any

from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import mlp_rows, norm_rows, vision_sizes
from mmjax.interop.huggingface.spelling import Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import check_options
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Part, Rewrite, Row, Squeezed

IGNORE = ()


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in the whole model to those of the tower alone."""
    return [(r"^vision_model\.", "")]


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `blip_2_vision_model` config -> ViTConfig; what it leaves out has the defaults of Blip2VisionConfig.

    The features are those behind the last norm, which the Q-Former reads.

    Raises:
        ConfigError: images that are not square.
    """
    return ViTConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 14),
        width=hf.get("hidden_size", 1408),
        num_layers=hf.get("num_hidden_layers", 39),
        num_heads=hf.get("num_attention_heads", 16),
        mlp_width=hf.get("intermediate_size", 6144),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        pre_norm=False,
        patch_bias=True,
        final_norm=True,
        pool="class_twice",
        feature_norm=True,
        qkv_bias=hf.get("qkv_bias", True),
    )


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `blip_2_vision_model` config.

    Raises:
        ConfigError: the tower has options that BLIP-2's has not.
    """
    check_options("Blip2VisionModel", config, class_token=True, pre_norm=False, patch_bias=True, final_norm=True,
                  pool="class_twice", layer_scale=None, num_registers=0, gated=False, mask_token=False,
                  projection_dim=None)  # fmt: skip
    sizes = vision_sizes(config)
    del sizes["num_channels"]
    return {"model_type": "blip_2_vision_model", **sizes, "qkv_bias": config.qkv_bias}


def config_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json -> our config."""
    return vision_from_hf(hf)


def config_to_hf(config: ViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {**fresh(template), **vision_to_hf(config), "architectures": ["Blip2VisionModel"]}


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower, whose q, k and v are one matrix on their side; prefixes end in "/" and "."."""
    mine, block = f"{ours}blocks/", theirs + "encoder.layers.{i}."
    table = [
        Row(f"{ours}class_embedding", f"{theirs}embeddings.class_embedding", Squeezed((0, 1))),
        Row(f"{ours}position_embedding", f"{theirs}embeddings.position_embedding", Squeezed((0,))),
        Row(f"{ours}patch_embed/kernel", f"{theirs}embeddings.patch_embedding.weight", CONV),
        Row(f"{ours}patch_embed/bias", f"{theirs}embeddings.patch_embedding.bias"),
        *norm_rows(f"{ours}post_norm", f"{theirs}post_layernorm"),
        *norm_rows(f"{mine}attn_norm", f"{block}layer_norm1"),
        *norm_rows(f"{mine}mlp_norm", f"{block}layer_norm2"),
        *mlp_rows(f"{mine}mlp", f"{block}mlp"),
        Row(f"{mine}attn/o/kernel", f"{block}self_attn.projection.weight", Linear(2)),
        Row(f"{mine}attn/o/bias", f"{block}self_attn.projection.bias"),
    ]
    thirds = (config.width,) * 3
    for index, name in enumerate("qkv"):
        part = Part(index, thirds, LINEAR)
        table.append(Row(f"{mine}attn/{name}/kernel", f"{block}self_attn.qkv.weight", part))
        if config.qkv_bias:
            part = Part(index, thirds, FLAT)
            table.append(Row(f"{mine}attn/{name}/bias", f"{block}self_attn.qkv.bias", part))
    return table


def table(config: ViTConfig) -> list[Row]:
    """The rows of a tower alone."""
    return tower_rows(config)
