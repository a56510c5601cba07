"""TimeSformer (transformers' TimesformerModel), also from the checkpoints of its classifier.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/timesformer
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.timesformer import TimeSformerConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import IGNORE, embedding_rows, half_rows, three_channels
from mmjax.interop.table import FLAT, LINEAR, Linear, Part, Rewrite, Row, Squeezed

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "table"]

ATTENTION = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}
ATTENTION_TO_HF = {ours: theirs for theirs, ours in ATTENTION.items()}


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier to those of the encoder alone."""
    return [(r"^timesformer\.", "")]


def config_from_hf(hf: Mapping[str, Any]) -> TimeSformerConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' TimesformerConfig.

    Raises:
        ConfigError: images or patches that are not square, or not of three channels; another scheme of attention.
    """
    three_channels(hf)
    scheme = hf.get("attention_type", "divided_space_time")
    if scheme not in ATTENTION:
        raise ConfigError(f"config.json: attention_type {scheme!r} is not supported, only {', '.join(ATTENTION)}")
    return TimeSformerConfig(
        num_frames=hf.get("num_frames", 8),
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 16),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        attention=ATTENTION[scheme],
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        qkv_bias=hf.get("qkv_bias", True),
    )


def config_to_hf(config: TimeSformerConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {
        **fresh(template),
        "model_type": "timesformer",
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "attention_type": ATTENTION_TO_HF[config.attention],
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "architectures": ["TimesformerModel"],
    }


def _attention_rows(config: TimeSformerConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of one attention, whose q, k and v are one map on their side."""
    sizes = (config.width,) * 3
    table = [
        Row(f"{ours}/o/kernel", f"{theirs}.output.dense.weight", Linear(2)),
        Row(f"{ours}/o/bias", f"{theirs}.output.dense.bias"),
    ]
    for index, name in enumerate("qkv"):
        table.append(Row(f"{ours}/{name}/kernel", f"{theirs}.attention.qkv.weight", Part(index, sizes, LINEAR)))
        if config.qkv_bias:
            table.append(Row(f"{ours}/{name}/bias", f"{theirs}.attention.qkv.bias", Part(index, sizes, FLAT)))
    return table


def table(config: TimeSformerConfig) -> list[Row]:
    """The rows of the tower."""
    block = "encoder.layer.{i}."
    table = [
        *embedding_rows(config, "", ""),
        *_attention_rows(config, "blocks/attn", block + "attention"),
        *half_rows("blocks/", block),
    ]
    if config.attention != "space":
        table.append(Row("time_embedding", "embeddings.time_embeddings", Squeezed((0,))))
    if config.attention == "divided":
        table += [
            *norm_rows("blocks/time_norm", block + "temporal_layernorm"),
            *_attention_rows(config, "blocks/time_attn", block + "temporal_attention"),
            Row("blocks/time_out/kernel", block + "temporal_dense.weight", LINEAR),
            Row("blocks/time_out/bias", block + "temporal_dense.bias"),
        ]
    return table
