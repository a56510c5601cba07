"""The audio spectrogram transformer (transformers' ASTModel), also from the checkpoints of its classifier.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/audio_spectrogram_transformer
"""

from collections.abc import Mapping
from typing import Any

from mmjax.encoders.ast import ASTConfig
from mmjax.interop.huggingface import vit
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import IGNORE, attention_rows, half_rows
from mmjax.interop.table import CONV, Rewrite, Row, Squeezed

__all__ = ["IGNORE", "config_from_hf", "config_to_hf", "rewrites", "table"]

MODEL_TYPE = "audio-spectrogram-transformer"


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier, and those in memory, to the names on disk."""
    return [(r"^audio_spectrogram_transformer\.", ""), *vit.rewrites(config)]


def config_from_hf(hf: Mapping[str, Any]) -> ASTConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' ASTConfig.

    Raises:
        ConfigError: patches that are not square.
    """
    return ASTConfig(
        num_frames=hf.get("max_length", 1024),
        num_mels=hf.get("num_mel_bins", 128),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        patch_size=square(hf, "patch_size", 16),
        frequency_stride=hf.get("frequency_stride", 10),
        time_stride=hf.get("time_stride", 10),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        qkv_bias=hf.get("qkv_bias", True),
    )


def config_to_hf(config: ASTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {
        **fresh(template),
        "model_type": MODEL_TYPE,
        "max_length": config.num_frames,
        "num_mel_bins": config.num_mels,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "patch_size": config.patch_size,
        "frequency_stride": config.frequency_stride,
        "time_stride": config.time_stride,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "architectures": ["ASTModel"],
    }


def table(config: ASTConfig) -> list[Row]:
    """The rows of the tower."""
    block = "encoder.layer.{i}."
    return [
        Row("class_embedding", "embeddings.cls_token", Squeezed((0, 1))),
        Row("distillation_embedding", "embeddings.distillation_token", Squeezed((0, 1))),
        Row("position_embedding", "embeddings.position_embeddings", Squeezed((0,))),
        Row("patch_embed/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
        Row("patch_embed/bias", "embeddings.patch_embeddings.projection.bias"),
        *norm_rows("post_norm", "layernorm"),
        *attention_rows(config, "blocks/", block + "attention."),
        *half_rows("blocks/", block),
    ]
