"""Qwen2 and Qwen2.5 (transformers' Qwen2ForCausalLM): Llama with biases on q, k and v.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily, layer_types, windowed_layers, windows

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The windows of Qwen2 and Qwen3: in the layers from max_window_layers on, where they are switched on."""
    kinds = windowed_layers(hf, lambda layer: layer >= hf["max_window_layers"])
    return windows(hf["sliding_window"] if hf["use_sliding_window"] else None, kinds)


def write(config: DecoderConfig) -> Json:
    """The keys that `read` reads."""
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": layer_types(config),
    }


FAMILY = TextFamily(
    kind="qwen2",
    architecture="Qwen2ForCausalLM",
    names=llama.NAMES,
    keys=llama.KEYS,
    defaults=DEFAULTS,
    options={"qkv_bias": True},
    read=read,
    write=write,
)
