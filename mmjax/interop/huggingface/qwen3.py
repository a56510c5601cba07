"""Qwen3 (transformers' Qwen3ForCausalLM): every head of q and k is normalised.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen3
"""

from mmjax.interop.huggingface import llama, qwen2
from mmjax.interop.huggingface.text import TextFamily

NORMS = {"attn/q_norm": llama.LAYER + "self_attn.q_norm", "attn/k_norm": llama.LAYER + "self_attn.k_norm"}

FAMILY = TextFamily(
    kind="qwen3",
    architecture="Qwen3ForCausalLM",
    names={**llama.NAMES, **NORMS},
    keys={**llama.KEYS, "qkv_bias": "attention_bias"},
    defaults={**qwen2.DEFAULTS, "head_dim": 128},
    options={"qk_norm": True},
    read=lambda hf: {**qwen2.read(hf), "out_bias": hf["attention_bias"]},
    write=qwen2.write,
)
