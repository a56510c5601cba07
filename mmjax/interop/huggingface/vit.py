"""ViT (transformers' ViTModel), also from the checkpoints of its classifier.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/vit
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Rewrite, Row, Squeezed
from mmjax.interop.tensors import Tensors

# A classifier is no part of an encoder.
IGNORE = (r"classifier\..*",)


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier, and those in memory, to the names on disk."""
    return [
        (r"^vit\.", ""),
        (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
        (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
        *ATTENTION_REWRITES,
    ]


# Names of the attention in memory to those on disk, for every family that descends from BERT's naming.
ATTENTION_REWRITES = [
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
]


def three_channels(hf: Mapping[str, Any]) -> None:
    """Raises ConfigError unless images have three channels."""
    if hf.get("num_channels", 3) != 3:
        raise ConfigError(f"config.json: num_channels {hf['num_channels']} is not supported, only 3")


def vision_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """A `vit` config -> ViTConfig; what it leaves out has the defaults of transformers' ViTConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels; another pooler.
    """
    three_channels(hf)
    width = hf.get("hidden_size", 768)
    pooler = (hf.get("pooler_output_size") or width, hf.get("pooler_act", "tanh"))
    if pooler != (width, "tanh"):
        raise ConfigError(
            f"config.json: pooler_output_size {pooler[0]} with pooler_act {pooler[1]!r} is not supported, "
            f"only hidden_size ({width}) with 'tanh'"
        )
    return ViTConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 16),
        width=width,
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        pre_norm=False,
        patch_bias=True,
        final_norm=True,
        pool="dense",
        qkv_bias=hf.get("qkv_bias", True),
    )


def check_options(name: str, config: ViTConfig, **wanted: Any) -> None:
    """Raises ConfigError unless the tower has these values; one value or a tuple of several each."""
    for key, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        found = getattr(config, key)
        if found not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise ConfigError(f"transformers' {name} has {key}={allowed}, this tower has {key}={found!r}")


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `vit` config.

    Raises:
        ConfigError: the tower has options that transformers' ViTModel has not.
    """
    check_options("ViTModel", config, class_token=True, pre_norm=False, patch_bias=True, final_norm=True,
                  pool=("dense", "none"), layer_scale=None, num_registers=0, gated=False, mask_token=False,
                  projection_dim=None)  # fmt: skip
    return {
        "model_type": "vit",
        **sizes_to_hf(config),
        "intermediate_size": config.mlp_width,
        "pooler_output_size": config.width,
        "pooler_act": "tanh",
    }


def sizes_to_hf(config: ViTConfig) -> Json:
    """The keys that the configs of ViT and DINOv2 share."""
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }


def config_from_hf(hf: Mapping[str, Any]) -> ViTConfig:
    """config.json -> our config."""
    return vision_from_hf(hf)


def config_to_hf(config: ViTConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {**fresh(template), **vision_to_hf(config), "architectures": ["ViTModel"]}


def settle(config: ViTConfig, tensors: Tensors) -> tuple[ViTConfig, Tensors]:
    """Checkpoints of the classifier have no pooler, which config.json does not say."""
    if "pooler.dense.weight" not in tensors:
        config = dataclasses.replace(config, pool="none")
    return config, tensors


def embedding_rows(config: ViTConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of the class token, the positions, the patch convolution and the last norm."""
    return [
        Row(f"{ours}class_embedding", f"{theirs}embeddings.cls_token", Squeezed((0, 1))),
        Row(f"{ours}position_embedding", f"{theirs}embeddings.position_embeddings", Squeezed((0,))),
        Row(f"{ours}patch_embed/kernel", f"{theirs}embeddings.patch_embeddings.projection.weight", CONV),
        Row(f"{ours}patch_embed/bias", f"{theirs}embeddings.patch_embeddings.projection.bias"),
        *norm_rows(f"{ours}post_norm", f"{theirs}layernorm"),
    ]


def attention_rows(config: ViTConfig, ours: str, theirs: str, inner: str = "attention") -> list[Row]:
    """Rows of the attention of blocks; `theirs` holds "{i}" and ends in ".attention."."""
    table = [
        Row(f"{ours}attn/o/kernel", f"{theirs}output.dense.weight", Linear(2)),
        Row(f"{ours}attn/o/bias", f"{theirs}output.dense.bias"),
    ]
    for mine, name in (("q", "query"), ("k", "key"), ("v", "value")):
        table.append(Row(f"{ours}attn/{mine}/kernel", f"{theirs}{inner}.{name}.weight", LINEAR))
        if config.qkv_bias:
            table.append(Row(f"{ours}attn/{mine}/bias", f"{theirs}{inner}.{name}.bias", FLAT))
    return table


def half_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of the norms and the MLP of blocks as BERT names them; `theirs` holds "{i}"."""
    table = [
        *norm_rows(f"{ours}attn_norm", f"{theirs}layernorm_before"),
        *norm_rows(f"{ours}mlp_norm", f"{theirs}layernorm_after"),
    ]
    for mine, name in (("up", "intermediate"), ("down", "output")):
        table.append(Row(f"{ours}mlp/{mine}/kernel", f"{theirs}{name}.dense.weight", LINEAR))
        table.append(Row(f"{ours}mlp/{mine}/bias", f"{theirs}{name}.dense.bias"))
    return table


def tower_rows(config: ViTConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the tower; prefixes end in "/" and "."."""
    block = theirs + "encoder.layer.{i}."
    table = [
        *embedding_rows(config, ours, theirs),
        *attention_rows(config, f"{ours}blocks/", block + "attention."),
        *half_rows(f"{ours}blocks/", block),
    ]
    if config.pool == "dense":
        table.append(Row(f"{ours}pooler/kernel", f"{theirs}pooler.dense.weight", LINEAR))
        table.append(Row(f"{ours}pooler/bias", f"{theirs}pooler.dense.bias"))
    return table


def table(config: ViTConfig) -> list[Row]:
    """The rows of a tower alone."""
    return tower_rows(config)
