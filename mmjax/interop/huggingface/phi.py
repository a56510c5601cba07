"""Phi-1 to Phi-2 (transformers' PhiForCausalLM): halves side by side behind one norm, a part of each head rotated.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/phi
"""

from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.text import TextFamily

KEYS = {ours: theirs for ours, theirs in llama.KEYS.items() if ours != "head_dim"}

FAMILY = TextFamily(
    kind="phi",
    architecture="PhiForCausalLM",
    names={
        "embed": "embed_tokens",
        "norm": "final_layernorm",
        "attn_norm": llama.LAYER + "input_layernorm",
        "attn/q": llama.LAYER + "self_attn.q_proj",
        "attn/k": llama.LAYER + "self_attn.k_proj",
        "attn/v": llama.LAYER + "self_attn.v_proj",
        "attn/o": llama.LAYER + "self_attn.dense",
        "attn/q_norm": llama.LAYER + "self_attn.q_layernorm",
        "attn/k_norm": llama.LAYER + "self_attn.k_layernorm",
        "mlp/up": llama.LAYER + "mlp.fc1",
        "mlp/down": llama.LAYER + "mlp.fc2",
    },
    keys={**KEYS, "norm_eps": "layer_norm_eps", "qk_norm": "qk_layernorm"},
    defaults={
        **llama.DEFAULTS,
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        "partial_rotary_factor": 0.5,
    },
    options={
        "norm": "layer",
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "parallel": True,
        "shared_norm": True,
        "head_bias": True,
    },
    rope="partial",
)
