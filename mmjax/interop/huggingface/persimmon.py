"""Persimmon (transformers' PersimmonForCausalLM), the LLM of Fuyu: squared ReLU, normed heads, half of each rotated.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/persimmon
"""

from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.text import TextFamily

LAYER = llama.LAYER
ABSENT = ("num_kv_heads", "head_dim")

FAMILY = TextFamily(
    kind="persimmon",
    architecture="PersimmonForCausalLM",
    names={
        "embed": "embed_tokens",
        "norm": "final_layernorm",
        "attn_norm": LAYER + "input_layernorm",
        "attn/q": LAYER + "self_attn.query_key_value",
        "attn/k": LAYER + "self_attn.query_key_value",
        "attn/v": LAYER + "self_attn.query_key_value",
        "attn/o": LAYER + "self_attn.dense",
        "attn/q_norm": LAYER + "self_attn.q_layernorm",
        "attn/k_norm": LAYER + "self_attn.k_layernorm",
        "mlp_norm": LAYER + "post_attention_layernorm",
        "mlp/up": LAYER + "mlp.dense_h_to_4h",
        "mlp/down": LAYER + "mlp.dense_4h_to_h",
    },
    keys={
        **{ours: theirs for ours, theirs in llama.KEYS.items() if ours not in ABSENT},
        "norm_eps": "layer_norm_eps",
        "qk_norm": "qk_layernorm",
    },
    defaults={
        **llama.DEFAULTS,
        "vocab_size": 262144,
        "intermediate_size": 16384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "max_position_embeddings": 16384,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "qk_layernorm": True,
        "partial_rotary_factor": 0.5,
    },
    options={"norm": "layer", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    rope="partial",
    by_head=True,
)
