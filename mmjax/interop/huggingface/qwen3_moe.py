"""Qwen3-MoE (transformers' Qwen3MoeForCausalLM): Qwen3 with experts, none of them shared.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen3_moe
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface import llama, qwen2_moe, qwen3
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily, windows


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Experts, and a window in all layers where it is switched on."""
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    every = windows(window, (True,) * hf["num_hidden_layers"])
    return {"moe": qwen2_moe.experts(hf), "out_bias": hf["attention_bias"], **every}


def write(config: DecoderConfig) -> Json:
    """The keys that `read` reads."""
    window = config.sliding_window
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        **qwen2_moe.write_experts(config),
    }


FAMILY = TextFamily(
    kind="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    names={**qwen2_moe.NAMES, **qwen3.NORMS},
    keys={**llama.KEYS, "qkv_bias": "attention_bias"},
    defaults={
        **qwen2_moe.DEFAULTS,
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    aliases={"num_local_experts": "num_experts"},
    options={"qk_norm": True},
    read=read,
    write=write,
)
