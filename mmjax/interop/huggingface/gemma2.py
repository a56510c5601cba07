"""Gemma 2 (transformers' Gemma2ForCausalLM): soft caps, norms behind each half, a window in every second layer.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma2
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface import gemma, llama
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily, layer_types, windowed_layers, windows

KEYS = {**gemma.KEYS, "attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
DEFAULTS = {
    **gemma.DEFAULTS,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
NAMES = {
    **llama.NAMES,
    "attn_post_norm": llama.LAYER + "post_attention_layernorm",
    "mlp_norm": llama.LAYER + "pre_feedforward_layernorm",
    "mlp_post_norm": llama.LAYER + "post_feedforward_layernorm",
}


def shared(hf: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common: `query_pre_attn_scalar` stands for the head width in attention's scale."""
    scalar = hf["query_pre_attn_scalar"]
    scale = None if scalar == hf["head_dim"] else scalar**-0.5
    return {**gemma.shared(hf), "post_norms": True, "attention_scale": scale}


def write(config: DecoderConfig) -> Json:
    """The keys of `shared` and of the windows."""
    scale = config.attention_scale
    return {
        "query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2),
        "sliding_window": config.sliding_window,
        "layer_types": layer_types(config),
    }


FAMILY = TextFamily(
    kind="gemma2",
    architecture="Gemma2ForCausalLM",
    names=NAMES,
    keys=KEYS,
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    only={"use_bidirectional_attention": False},
    activation="hidden_activation",
    read=lambda hf: {
        **shared(hf),
        **windows(hf["sliding_window"], windowed_layers(hf, lambda layer: layer % 2 == 0)),
    },
    write=write,
)
