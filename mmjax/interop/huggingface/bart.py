"""BART (transformers' BartForConditionalGeneration): post-norm, learned positions that begin at row 2.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/bart
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface.clip import mlp_rows, norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh
from mmjax.interop.huggingface.t5 import settle_shared
from mmjax.interop.huggingface.text import settle_head
from mmjax.interop.table import FLAT, LINEAR, Linear, Rewrite, Row, Squeezed
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig

IGNORE = (r".*\.version",)
HEAD, SHARED, BIAS = "lm_head.weight", "model.shared.weight", "final_logits_bias"
KEYS = {
    "vocab_size": ("vocab_size", 50265),
    "width": ("d_model", 1024),
    "num_layers": ("decoder_layers", 12),
    "num_heads": ("decoder_attention_heads", 16),
    "mlp_width": ("decoder_ffn_dim", 4096),
    "max_positions": ("max_position_embeddings", 1024),
    "start_token": ("decoder_start_token_id", 2),
}
# Option, its key and default, and our option of the decoder that it may equal.
ENCODER_KEYS = {
    "encoder_layers": ("encoder_layers", 12, "num_layers"),
    "encoder_heads": ("encoder_attention_heads", 16, "num_heads"),
    "encoder_mlp_width": ("encoder_ffn_dim", 4096, "mlp_width"),
}
# As all published BARTs have them. Without tied words transformers gives encoder, decoder and output layer a
# matrix each; the others are switches of the first conversions.
ONLY = {
    "tie_word_embeddings": True,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
}


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names of the model without its output layer to those of the whole."""
    return [(r"^(shared|encoder|decoder)\.", r"model.\1.")]


def backbone_from_hf(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """A BART config -> EncoderDecoderConfig; what it leaves out has the defaults of BartConfig.

    Raises:
        ConfigError: an option that is not supported.
    """
    for key, value in ONLY.items():
        if hf.get(key, value) != value:
            raise ConfigError(f"config.json: {key} {hf[key]!r} is not supported, only {value!r}")
    found = {ours: hf.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
    for ours, (theirs, default, same) in ENCODER_KEYS.items():
        value = hf.get(theirs, default)
        found[ours] = None if value == found[same] else value
    width = found["width"]
    if width % found["num_heads"]:
        raise ConfigError(
            f"config.json: d_model {width} is not a multiple of decoder_attention_heads {found['num_heads']}"
        )
    return EncoderDecoderConfig(
        **found,
        head_dim=width // found["num_heads"],
        activation=activation_from_hf(hf, "activation_function", "gelu"),
        gated=False,
        norm="layer",
        norm_eps=1e-5,
        post_norm=True,
        use_bias=True,
        position="learned",
        position_offset=2,
        attention_scale=None,
        embedding_scale=width**0.5 if hf.get("scale_embedding") else 1.0,
        embed_norm=True,
        head_bias=True,
    )


def backbone_to_hf(config: EncoderDecoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """EncoderDecoderConfig -> config.json, over the other keys of `template`."""
    out = {**fresh(template), **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()}}
    for ours, (theirs, _, same) in ENCODER_KEYS.items():
        out[theirs] = getattr(config, ours) or getattr(config, same)
    return {
        **out,
        "activation_function": ACTIVATIONS_TO_HF[config.activation],
        "scale_embedding": config.embedding_scale != 1,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
    }


def _attention_rows(ours: str, theirs: str) -> list[Row]:
    out = []
    for mine, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        out.append(Row(f"{ours}/{mine}/kernel", f"{theirs}.{name}.weight", Linear(2 if mine == "o" else 1)))
        out.append(Row(f"{ours}/{mine}/bias", f"{theirs}.{name}.bias", FLAT))
    return out


def table(config: MultimodalLMConfig) -> list[Row]:
    """The rows of the whole model."""
    rows = [Row("backbone/embed/embedding", SHARED), Row("backbone/lm_head/bias", BIAS, Squeezed((0,)))]
    if not config.backbone.tie_embeddings:
        rows.append(Row("backbone/lm_head/kernel", HEAD, LINEAR))
    for side in ("encoder", "decoder"):
        ours, theirs = f"backbone/{side}/", f"model.{side}."
        block, layer = f"{ours}blocks/", f"{theirs}layers.{{i}}."
        rows.append(Row(f"{ours}positions/embedding", f"{theirs}embed_positions.weight"))
        rows += norm_rows(f"{ours}embed_norm", f"{theirs}layernorm_embedding")
        rows += _attention_rows(f"{block}attn", f"{layer}self_attn")
        rows += norm_rows(f"{block}attn_norm", f"{layer}self_attn_layer_norm")
        if side == "decoder":
            rows += _attention_rows(f"{block}cross_attn", f"{layer}encoder_attn")
            rows += norm_rows(f"{block}cross_norm", f"{layer}encoder_attn_layer_norm")
        rows += mlp_rows(f"{block}mlp", layer.removesuffix("."))
        rows += norm_rows(f"{block}mlp_norm", f"{layer}final_layer_norm")
    return rows


def settle(config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
    """Lets the tensors say which matrices are one; a file of BartModel alone has no bias of the output layer."""
    copies = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    backbone, tensors = settle_head(config.backbone, settle_shared(tensors, SHARED, copies), SHARED, HEAD)
    tensors.setdefault(BIAS, np.zeros((1, backbone.vocab_size), np.float32))
    return dataclasses.replace(config, backbone=backbone), tensors


def config_from_hf(hf: Mapping[str, Any]) -> MultimodalLMConfig:
    """config.json -> our config of a plain BART."""
    return MultimodalLMConfig(backbone_from_hf(hf))


def config_to_hf(config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return backbone_to_hf(config.backbone, template)
