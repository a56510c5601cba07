"""Llama 1 to 3 (transformers' LlamaForCausalLM), whose names and keys most later families took over.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama
"""

from mmjax.interop.huggingface.text import TextFamily

KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
LAYER = "layers.{i}."
NAMES = {
    "embed": "embed_tokens",
    "norm": "norm",
    "attn_norm": LAYER + "input_layernorm",
    "attn/q": LAYER + "self_attn.q_proj",
    "attn/k": LAYER + "self_attn.k_proj",
    "attn/v": LAYER + "self_attn.v_proj",
    "attn/o": LAYER + "self_attn.o_proj",
    "mlp_norm": LAYER + "post_attention_layernorm",
    "mlp/gate": LAYER + "mlp.gate_proj",
    "mlp/up": LAYER + "mlp.up_proj",
    "mlp/down": LAYER + "mlp.down_proj",
}

FAMILY = TextFamily(
    kind="llama",
    architecture="LlamaForCausalLM",
    names=NAMES,
    keys={**KEYS, "qkv_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults=DEFAULTS,
    read=lambda hf: {"out_bias": hf["attention_bias"]},
)
table = FAMILY.table
