"""Gemma (transformers' GemmaForCausalLM): scaled embeddings, norms whose scale is counted from one, GeGLU.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma
"""

from collections.abc import Mapping
from typing import Any

from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.text import TextFamily

KEYS = {**llama.KEYS, "qkv_bias": "attention_bias"}
DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


def shared(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all Gemmas that follow from others."""
    return {"out_bias": hf["attention_bias"], "embedding_scale": hf["hidden_size"] ** 0.5, "norm_offset": 1.0}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The first files say "gelu" and mean its approximation."""
    return {**shared(hf), **({"activation": "gelu_tanh"} if hf["hidden_act"] == "gelu" else {})}


FAMILY = TextFamily(
    kind="gemma",
    architecture="GemmaForCausalLM",
    names=llama.NAMES,
    keys=KEYS,
    defaults=DEFAULTS,
    only={"use_bidirectional_attention": False},
    read=read,
)
