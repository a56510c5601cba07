"""GPT-2 (transformers' GPT2LMHeadModel): learned positions, kernels [in, out] with q, k and v fused.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gpt2
"""

from mmjax.interop.huggingface.text import TextFamily

LAYER = "h.{i}."
# GPT-J took over the keys.
KEYS = {
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "mlp_width": "n_inner",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
}
DEFAULTS = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
}

FAMILY = TextFamily(
    kind="gpt2",
    architecture="GPT2LMHeadModel",
    names={
        "embed": "wte",
        "positions": "wpe",
        "norm": "ln_f",
        "attn_norm": LAYER + "ln_1",
        "attn/q": LAYER + "attn.c_attn",
        "attn/k": LAYER + "attn.c_attn",
        "attn/v": LAYER + "attn.c_attn",
        "attn/o": LAYER + "attn.c_proj",
        "mlp_norm": LAYER + "ln_2",
        "mlp/up": LAYER + "mlp.c_fc",
        "mlp/down": LAYER + "mlp.c_proj",
    },
    keys=KEYS,
    defaults=DEFAULTS,
    options={
        "norm": "layer",
        "gated": False,
        "position": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    only={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    activation="activation_function",
    rope="",
    read=lambda hf: {"attention_scale": None if hf["scale_attn_weights"] else 1.0},
    write=lambda config: {"scale_attn_weights": config.attention_scale is None},
    model="transformer.",
    conv1d=True,
)
