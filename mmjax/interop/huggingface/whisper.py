"""The encoder of Whisper (transformers' WhisperEncoder), also from checkpoints of the whole model.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/whisper
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.interop.huggingface.clip import mlp_rows, norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Rewrite, Row

# The decoder and its head are no part of an encoder.
IGNORE = (r"decoder\..*", r"proj_out\.weight")


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in the whole model, with or without its head, to those of the encoder alone."""
    return [(r"^model\.", ""), (r"^encoder\.", "")]


def config_from_hf(hf: Mapping[str, Any]) -> WhisperEncoderConfig:
    """config.json -> our config of the encoder; what it leaves out has the defaults of WhisperConfig."""
    return WhisperEncoderConfig(
        num_mels=hf.get("num_mel_bins", 80),
        max_positions=hf.get("max_source_positions", 1500),
        width=hf.get("d_model", 384),
        num_layers=hf.get("encoder_layers", 4),
        num_heads=hf.get("encoder_attention_heads", 6),
        mlp_width=hf.get("encoder_ffn_dim", 1536),
        activation=activation_from_hf(hf, "activation_function", "gelu"),
    )


def config_to_hf(config: WhisperEncoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: another epsilon than the one that WhisperEncoder always has.
    """
    if config.norm_eps != WhisperEncoderConfig.norm_eps:
        raise ConfigError(
            f"transformers' WhisperEncoder has norm_eps {WhisperEncoderConfig.norm_eps}, this has {config.norm_eps}"
        )
    return {
        **fresh(template),
        "model_type": "whisper",
        "num_mel_bins": config.num_mels,
        "max_source_positions": config.max_positions,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_width,
        "activation_function": ACTIVATIONS_TO_HF[config.activation],
        "architectures": ["WhisperEncoder"],
    }


def tower_rows(config: WhisperEncoderConfig, ours: str = "", theirs: str = "") -> list[Row]:
    """Rows of the encoder, whose keys have no bias; prefixes end in "/" and "."."""
    mine, block = f"{ours}blocks/", theirs + "layers.{i}."
    table = [
        Row(f"{ours}position_embedding", f"{theirs}embed_positions.weight"),
        *norm_rows(f"{ours}final_norm", f"{theirs}layer_norm"),
        *norm_rows(f"{mine}attn_norm", f"{block}self_attn_layer_norm"),
        *norm_rows(f"{mine}mlp_norm", f"{block}final_layer_norm"),
        *mlp_rows(f"{mine}mlp", block.removesuffix(".")),
        Row(f"{mine}attn/o/kernel", f"{block}self_attn.out_proj.weight", Linear(2)),
        Row(f"{mine}attn/o/bias", f"{block}self_attn.out_proj.bias"),
    ]
    for name in "12":
        table.append(Row(f"{ours}conv_{name}/kernel", f"{theirs}conv{name}.weight", CONV))
        table.append(Row(f"{ours}conv_{name}/bias", f"{theirs}conv{name}.bias"))
    for name in "qkv":
        table.append(Row(f"{mine}attn/{name}/kernel", f"{block}self_attn.{name}_proj.weight", LINEAR))
        if name != "k":
            table.append(Row(f"{mine}attn/{name}/bias", f"{block}self_attn.{name}_proj.bias", FLAT))
    return table


def table(config: WhisperEncoderConfig) -> list[Row]:
    """The rows of the encoder alone."""
    return tower_rows(config)
