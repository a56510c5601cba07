"""Qwen2 and Qwen2.5 (transformers' Qwen2ForCausalLM): Llama with biases on q, k and v.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface.llama import IGNORE, rewrites, rows, settle, sizes_to_hf, table
from mmjax.interop.huggingface.spelling import Json, activation_from_hf, fresh, rope_from_hf
from mmjax.model import MultimodalLMConfig

__all__ = [
    "IGNORE",
    "config_from_hf",
    "config_to_hf",
    "decoder_from_hf",
    "decoder_to_hf",
    "rewrites",
    "rows",
    "settle",
    "table",
]

ARCHITECTURE = "Qwen2ForCausalLM"


def decoder_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """A `qwen2` config.json -> DecoderConfig; what the file leaves out has the defaults of Qwen2Config.

    Raises:
        ConfigError: the model uses sliding windows.
    """
    sliding = [kind for kind in hf.get("layer_types") or () if kind != "full_attention"]
    if hf.get("use_sliding_window", False) or sliding:
        raise ConfigError(
            "config.json: use_sliding_window is set, so some layers see a window of "
            f"{hf.get('sliding_window', 4096)} tokens; only full attention is supported"
        )
    width, heads = hf.get("hidden_size", 4096), hf.get("num_attention_heads", 32)
    max_positions = hf.get("max_position_embeddings", 32768)
    theta, scaling = rope_from_hf(hf, max_positions)
    return DecoderConfig(
        vocab_size=hf.get("vocab_size", 151936),
        width=width,
        num_layers=hf.get("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads", 32) or heads,
        head_dim=hf.get("head_dim") or width // heads,
        mlp_width=hf.get("intermediate_size", 22016),
        max_positions=max_positions,
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=activation_from_hf(hf, "hidden_act", "silu"),
        qkv_bias=True,
        tie_embeddings=hf.get("tie_word_embeddings", False),
    )


def decoder_to_hf(config: DecoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """DecoderConfig -> a `qwen2` config.json, over the other keys of `template`.

    Raises:
        ConfigError: biases that are not Qwen2's.
    """
    if not config.qkv_bias or config.out_bias or config.mlp_bias:
        raise ConfigError("transformers' Qwen2 has biases on q, k and v, and on nothing else")
    ends = {"bos_token_id": None, "eos_token_id": None}
    return {
        **ends,
        **fresh(template),
        "model_type": "qwen2",
        "architectures": [ARCHITECTURE],
        **sizes_to_hf(config),
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * config.num_layers,
    }


def config_from_hf(hf: Mapping[str, Any]) -> MultimodalLMConfig:
    """config.json -> our config of a plain LLM."""
    return MultimodalLMConfig(decoder_from_hf(hf))


def config_to_hf(config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return decoder_to_hf(config.backbone, template)
