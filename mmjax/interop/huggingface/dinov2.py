"""DINOv2 (transformers' Dinov2Model), without and with registers (Dinov2WithRegistersModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/dinov2
https://github.com/huggingface/transformers/tree/main/src/transformers/models/dinov2_with_registers
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import mlp_rows, norm_rows
from mmjax.interop.huggingface.spelling import Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import (
    ATTENTION_REWRITES,
    IGNORE,
    attention_rows,
    check_options,
    embedding_rows,
    sizes_to_hf,
    three_channels,
)
from mmjax.interop.table import FLAT, LINEAR, Part, Rewrite, Row, Squeezed
from mmjax.interop.tensors import Tensors

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "settle", "table"]

REGISTERS = "dinov2_with_registers"


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier, and those in memory, to the names on disk."""
    return [(r"^dinov2(_with_registers)?\.", ""), *ATTENTION_REWRITES]


def mlp_width(width: int, ratio: float, gated: bool) -> int:
    """F of a width and its ratio; a gated MLP has two thirds of it, rounded up to a multiple of 8."""
    full = int(width * ratio)
    return -(-int(full * 2 / 3) // 8) * 8 if gated else full


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A config of either kind -> ViTConfig; what it leaves out has transformers' defaults.

    Raises:
        ConfigError: images that are not square or do not have three channels.
    """
    three_channels(hf)
    registers = hf.get("model_type") == REGISTERS
    width, gated = hf.get("hidden_size", 768), hf.get("use_swiglu_ffn", False)
    return ViTConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 16 if registers else 14),
        width=width,
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=mlp_width(width, hf.get("mlp_ratio", 4), gated),
        # A gated MLP has SiLU whatever config.json says.
        activation="silu" if gated else activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        pre_norm=False,
        patch_bias=True,
        final_norm=True,
        pool="class",
        qkv_bias=hf.get("qkv_bias", True),
        gated=gated,
        layer_scale=float(hf.get("layerscale_value", 1.0)),
        num_registers=hf.get("num_register_tokens", 4) if registers else 0,
        mask_token=registers or hf.get("use_mask_token", True),
        resize_positions="bicubic_antialias" if registers else "bicubic",
    )


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a config of the one kind or the other.

    Raises:
        ConfigError: the tower has options that DINOv2 has not, or an MLP whose width is no multiple of its own.
    """
    registers = config.resize_positions == "bicubic_antialias"
    name = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    check_options(name, config, class_token=True, pre_norm=False, patch_bias=True, final_norm=True,
                  pool="class", projection_dim=None, resize_positions=("bicubic", "bicubic_antialias"))  # fmt: skip
    if config.layer_scale is None:
        raise ConfigError(f"transformers' {name} has a layer_scale, this tower has none")
    if registers:
        check_options(name, config, mask_token=True)
        if not config.num_registers:
            raise ConfigError(f"transformers' {name} has num_registers, this tower has none")
    else:
        check_options(name, config, num_registers=0)
    if config.gated:
        check_options(f"gated {name}", config, activation="silu")
    ratios = [r for r in range(1, 65) if mlp_width(config.width, r, config.gated) == config.mlp_width]
    if not ratios:
        raise ConfigError(
            f"transformers' {name} has an mlp_ratio that is a whole number; mlp_width {config.mlp_width} "
            f"is what none gives for width {config.width}"
        )
    # The published ratio where several round to the same width.
    ratio = 4 if 4 in ratios else ratios[0]
    only = {"num_register_tokens": config.num_registers} if registers else {"use_mask_token": config.mask_token}
    sizes = sizes_to_hf(config)
    if config.gated:
        del sizes["hidden_act"]
    return {
        "model_type": REGISTERS if registers else "dinov2",
        **sizes,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": config.gated,
        "layerscale_value": config.layer_scale,
        **only,
    }


def config_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json -> our config."""
    return vision_from_hf(hf)


def config_to_hf(config: ViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    out = vision_to_hf(config)
    name = "Dinov2WithRegistersModel" if out["model_type"] == REGISTERS else "Dinov2Model"
    return {**fresh(template), **out, "architectures": [name]}


def settle(config: ViTConfig, tensors: Tensors) -> tuple[ViTConfig, Tensors]:
    """Files without a mask token are those of a tower without one, whatever config.json says."""
    if config.num_registers == 0 and "embeddings.mask_token" not in tensors:
        config = dataclasses.replace(config, mask_token=False)
    return config, tensors


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower; prefixes end in "/" and "."."""
    mine, block = f"{ours}blocks/", theirs + "encoder.layer.{i}."
    table = [
        *embedding_rows(config, ours, theirs),
        *norm_rows(f"{mine}attn_norm", f"{block}norm1"),
        *norm_rows(f"{mine}mlp_norm", f"{block}norm2"),
        *attention_rows(config, mine, f"{block}attention."),
        Row(f"{mine}attn_scale", f"{block}layer_scale1.lambda1"),
        Row(f"{mine}mlp_scale", f"{block}layer_scale2.lambda1"),
    ]
    if config.num_registers:
        table.append(Row(f"{ours}registers", f"{theirs}embeddings.register_tokens", Squeezed((0,))))
    if config.mask_token:
        table.append(Row(f"{ours}mask_embedding", f"{theirs}embeddings.mask_token", Squeezed((0,))))
    if not config.gated:
        return table + mlp_rows(f"{mine}mlp", f"{block}mlp")
    halves = (config.mlp_width,) * 2
    for index, part in enumerate(("gate", "up")):
        for leaf, name, inner in (("kernel", "weight", LINEAR), ("bias", "bias", FLAT)):
            transform = Part(index, halves, inner)
            table.append(Row(f"{mine}mlp/{part}/{leaf}", f"{block}mlp.weights_in.{name}", transform))
    table.append(Row(f"{mine}mlp/down/kernel", f"{block}mlp.weights_out.weight", LINEAR))
    table.append(Row(f"{mine}mlp/down/bias", f"{block}mlp.weights_out.bias"))
    return table


def table(config: ViTConfig) -> list[Row]:
    """The rows of a tower alone."""
    return tower_rows(config)
