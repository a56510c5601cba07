"""Swin (transformers' SwinModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/swin
"""

from collections.abc import Mapping
from typing import Any

from mmjax.encoders.swin import SwinConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import attention_rows, half_rows, three_channels
from mmjax.interop.table import CONV, LINEAR, Rewrite, Row, Squeezed

# A classifier is no part of an encoder, a mask token is used in pretraining alone; the index is computed.
IGNORE = (r"classifier\..*", r"embeddings\.mask_token", r".*\.relative_position_index")


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names in a classifier, and those in memory, to the names on disk."""
    return [
        (r"^swin\.", ""),
        (r"\.attention\.q_proj\.", ".attention.self.query."),
        (r"\.attention\.k_proj\.", ".attention.self.key."),
        (r"\.attention\.v_proj\.", ".attention.self.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.attention\.relative_position_bias\.", ".attention.self."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ]


def config_from_hf(hf: Mapping[str, Any]) -> SwinConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' SwinConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels; windows larger than a map.
    """
    three_channels(hf)
    return SwinConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 4),
        width=hf.get("embed_dim", 96),
        depths=tuple(hf.get("depths") or (2, 2, 6, 2)),
        num_heads=tuple(hf.get("num_heads") or (3, 6, 12, 24)),
        window_size=hf.get("window_size", 7),
        mlp_ratio=float(hf.get("mlp_ratio", 4.0)),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        qkv_bias=hf.get("qkv_bias", True),
        absolute_positions=hf.get("use_absolute_embeddings", False),
    )


def config_to_hf(config: SwinConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {
        **fresh(template),
        "model_type": "swin",
        "architectures": ["SwinModel"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "embed_dim": config.width,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "use_absolute_embeddings": config.absolute_positions,
    }


def table(config: SwinConfig) -> list[Row]:
    """The rows of every leaf."""
    rows = [
        Row("stem/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
        Row("stem/bias", "embeddings.patch_embeddings.projection.bias"),
        *norm_rows("stem_norm", "embeddings.norm"),
        *norm_rows("norm", "layernorm"),
    ]
    if config.absolute_positions:
        rows.append(Row("position_embedding", "embeddings.position_embeddings", Squeezed((0,))))
    return rows + stage_rows(config)


def stage_rows(config: SwinConfig, ours: str = "", theirs: str = "encoder.") -> list[Row]:
    """The rows of the blocks and of what stands between the stages; prefixes end in "/" and "."."""
    rows = []
    for stage in range(len(config.depths)):
        mine, block = f"{ours}stage_{stage}/", f"{theirs}layers.{stage}.blocks." + "{i}."
        rows += attention_rows(config, mine, f"{block}attention.", "self")
        rows += half_rows(mine, block)
        rows.append(Row(f"{mine}attn/offsets", f"{block}attention.self.relative_position_bias_table"))
        if stage:
            merge = f"{theirs}layers.{stage - 1}.downsample."
            rows += norm_rows(f"{ours}merge_{stage}/norm", f"{merge}norm")
            rows.append(Row(f"{ours}merge_{stage}/out/kernel", f"{merge}reduction.weight", LINEAR))
    return rows
