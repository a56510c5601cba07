"""Llama 1 to 3 (transformers' LlamaForCausalLM): config and table of names.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface.spelling import (
    ACTIVATIONS_TO_HF,
    Json,
    activation_from_hf,
    fresh,
    rope_from_hf,
    rope_to_hf,
)
from mmjax.interop.table import FLAT, IDENTITY, LINEAR, Linear, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig

ARCHITECTURE = "LlamaForCausalLM"
# Buffers that older versions saved and that follow from the config.
IGNORE = (r".*\.rotary_emb\.inv_freq", r".*\.position_ids")


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the names of a bare LlamaModel to those of LlamaForCausalLM."""
    return [(r"^(embed_tokens|layers|norm)\.", r"model.\1.")]


def decoder_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """A `llama` config.json -> DecoderConfig; what the file leaves out has the defaults of LlamaConfig."""
    width, heads = hf.get("hidden_size", 4096), hf.get("num_attention_heads", 32)
    max_positions = hf.get("max_position_embeddings", 2048)
    theta, scaling = rope_from_hf(hf, max_positions)
    bias = hf.get("attention_bias", False)
    return DecoderConfig(
        vocab_size=hf.get("vocab_size", 32000),
        width=width,
        num_layers=hf.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or width // heads,
        mlp_width=hf.get("intermediate_size", 11008),
        max_positions=max_positions,
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=activation_from_hf(hf, "hidden_act", "silu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=hf.get("mlp_bias", False),
        tie_embeddings=hf.get("tie_word_embeddings", False),
    )


def sizes_to_hf(config: DecoderConfig) -> Json:
    """The keys that the configs of all Llama-like families share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **rope_to_hf(config.rope_theta, config.rope_scaling),
    }


def decoder_to_hf(config: DecoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """DecoderConfig -> a `llama` config.json, over the other keys of `template`.

    Raises:
        ConfigError: biases that Llama does not have.
    """
    if config.qkv_bias != config.out_bias:
        raise ConfigError("transformers' Llama has biases on q, k, v and o together, or on none of them")
    ends = {"bos_token_id": None, "eos_token_id": None}
    return {
        **ends,
        **fresh(template),
        "model_type": "llama",
        "architectures": [ARCHITECTURE],
        **sizes_to_hf(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def rows(config: DecoderConfig, model: str = "model.", head: str = "lm_head.weight") -> list[Row]:
    """The table of a decoder; `model` is the prefix of its names, `head` the name of its output layer."""
    ours, theirs = "backbone/blocks/", model + "layers.{i}."
    table = [
        Row("backbone/embed/embedding", model + "embed_tokens.weight"),
        Row(ours + "attn_norm/scale", theirs + "input_layernorm.weight"),
        Row(ours + "mlp_norm/scale", theirs + "post_attention_layernorm.weight"),
        Row(ours + "attn/o/kernel", theirs + "self_attn.o_proj.weight", Linear(2)),
        Row("backbone/norm/scale", model + "norm.weight", IDENTITY),
    ]
    for name in "qkv":
        table.append(Row(f"{ours}attn/{name}/kernel", f"{theirs}self_attn.{name}_proj.weight", LINEAR))
        if config.qkv_bias:
            table.append(Row(f"{ours}attn/{name}/bias", f"{theirs}self_attn.{name}_proj.bias", FLAT))
    if config.out_bias:
        table.append(Row(ours + "attn/o/bias", theirs + "self_attn.o_proj.bias"))
    for name in ("gate", "up", "down"):
        table.append(Row(f"{ours}mlp/{name}/kernel", f"{theirs}mlp.{name}_proj.weight", LINEAR))
        if config.mlp_bias:
            table.append(Row(f"{ours}mlp/{name}/bias", f"{theirs}mlp.{name}_proj.bias"))
    if not config.tie_embeddings:
        table.append(Row("backbone/lm_head/kernel", head, LINEAR))
    return table


def settle_head(
    config: DecoderConfig,
    tensors: Tensors,
    embedding: str = "model.embed_tokens.weight",
    head: str = "lm_head.weight",
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Agrees config and file about a tied output layer.

    A file of a tied model may hold the matrix under either name or both. Where both are there and differ,
    the model is not tied after all, whatever its config says (transformers 5 decides so too).

    Returns:
        The config, and the tensors with the one name or both that the table then asks for.
    """
    tensors = dict(tensors)
    if not config.tie_embeddings or head not in tensors:
        return config, tensors
    if embedding not in tensors:
        tensors[embedding] = tensors[head]
    elif not np.array_equal(np.asarray(tensors[embedding]), np.asarray(tensors[head])):
        return dataclasses.replace(config, tie_embeddings=False), tensors
    del tensors[head]
    return config, tensors


def config_from_hf(hf: Mapping[str, Any]) -> MultimodalLMConfig:
    """config.json -> our config of a plain LLM."""
    return MultimodalLMConfig(decoder_from_hf(hf))


def config_to_hf(config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return decoder_to_hf(config.backbone, template)


def table(config: MultimodalLMConfig) -> list[Row]:
    """The rows of the whole model."""
    return rows(config.backbone)


def settle(config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
    """Lets the tensors correct what the config says, see `settle_head`."""
    backbone, tensors = settle_head(config.backbone, tensors)
    return dataclasses.replace(config, backbone=backbone), tensors
