"""VideoMAE (transformers' VideoMAEModel), also from the checkpoints of its classifier.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/videomae
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.video_vit import VideoViTConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import half_rows, three_channels
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Rewrite, Row

CLASSIFIER = "VideoMAEForVideoClassification"
# The head of a classifier and the decoder of pre-training are no part of an encoder. The norm before the head is one
# where its mean is asked for, see `config_from_hf`.
IGNORE = (
    r"classifier\..*", r"fc_norm\..*", r"decoder\..*", r"encoder_to_decoder\..*", r"mask_token", r"position_embeddings",
)  # fmt: skip


def rewrites(config: VideoViTConfig) -> list[Rewrite]:
    """Brings the names in memory to those on disk, and those in a model with a head to the wanted ones."""
    return [
        (r"^videomae\.", ""),
        (r"\.attention\.attention\.query\.bias$", ".attention.attention.q_bias"),
        (r"\.attention\.attention\.value\.bias$", ".attention.attention.v_bias"),
        (r"^(embeddings|encoder|layernorm)\.", _prefix(config) + r"\1."),
    ]


def _prefix(config: VideoViTConfig) -> str:
    """What names begin with: the norm behind the mean is a leaf of the classifier, so that one is written."""
    return "videomae." if config.pool == "mean" else ""


def config_from_hf(hf: Mapping[str, Any]) -> VideoViTConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' VideoMAEConfig.

    A classifier with mean pooling has pool "mean".

    Raises:
        ConfigError: images or patches that are not square, or not of three channels.
    """
    three_channels(hf)
    mean = hf.get("use_mean_pooling", True)
    return VideoViTConfig(
        num_frames=hf.get("num_frames", 16),
        image_size=square(hf, "image_size", 224),
        tubelet_size=hf.get("tubelet_size", 2),
        patch_size=square(hf, "patch_size", 16),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        final_norm=not mean,
        pool="mean" if mean and CLASSIFIER in (hf.get("architectures") or ()) else "none",
        qkv_bias=hf.get("qv_bias", hf.get("qkv_bias", True)),
    )


def config_to_hf(config: VideoViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that transformers' VideoMAEModel has not.
    """
    wanted = {"positions": "sine", "class_token": False, "key_bias": False}
    wrong = [f"{key}={getattr(config, key)!r}" for key, value in wanted.items() if getattr(config, key) != value]
    if wrong:
        raise ConfigError(f"transformers' VideoMAEModel has {wanted}, this encoder has {', '.join(wrong)}")
    if config.pool == "mean" and config.final_norm:
        raise ConfigError('transformers\' VideoMAEModel has final_norm or pool "mean", this encoder has both')
    return {
        **fresh(template),
        "model_type": "videomae",
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "num_channels": 3,
        "tubelet_size": config.tubelet_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "use_mean_pooling": not config.final_norm,
        "qv_bias": config.qkv_bias,
        "architectures": [CLASSIFIER if config.pool == "mean" else "VideoMAEModel"],
    }


def table(config: VideoViTConfig) -> list[Row]:
    """The rows of the tower."""
    prefix = _prefix(config)
    block = prefix + "encoder.layer.{i}."
    attention = block + "attention.attention."
    table = [
        Row("patch_embed/kernel", f"{prefix}embeddings.patch_embeddings.projection.weight", CONV),
        Row("patch_embed/bias", f"{prefix}embeddings.patch_embeddings.projection.bias"),
        Row("blocks/attn/q/kernel", f"{attention}query.weight", LINEAR),
        Row("blocks/attn/k/kernel", f"{attention}key.weight", LINEAR),
        Row("blocks/attn/v/kernel", f"{attention}value.weight", LINEAR),
        Row("blocks/attn/o/kernel", f"{block}attention.output.dense.weight", Linear(2)),
        Row("blocks/attn/o/bias", f"{block}attention.output.dense.bias"),
        *half_rows("blocks/", block),
    ]
    if config.qkv_bias:
        table += [Row(f"blocks/attn/{name}/bias", f"{attention}{name}_bias", FLAT) for name in "qv"]
    if config.final_norm:
        table += norm_rows("post_norm", f"{prefix}layernorm")
    if config.pool == "mean":
        table += norm_rows("pool_norm", "fc_norm")
    return table
