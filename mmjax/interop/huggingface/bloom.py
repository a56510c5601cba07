"""Bloom (transformers' BloomForCausalLM): ALiBi, a norm behind the embeddings, q, k and v fused by head.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/bloom
"""

from mmjax.interop.huggingface.text import TextFamily

LAYER = "h.{i}."

FAMILY = TextFamily(
    kind="bloom",
    architecture="BloomForCausalLM",
    names={
        "embed": "word_embeddings",
        "embed_norm": "word_embeddings_layernorm",
        "norm": "ln_f",
        "attn_norm": LAYER + "input_layernorm",
        "attn/q": LAYER + "self_attention.query_key_value",
        "attn/k": LAYER + "self_attention.query_key_value",
        "attn/v": LAYER + "self_attention.query_key_value",
        "attn/o": LAYER + "self_attention.dense",
        "mlp_norm": LAYER + "post_attention_layernorm",
        "mlp/up": LAYER + "mlp.dense_h_to_4h",
        "mlp/down": LAYER + "mlp.dense_4h_to_h",
    },
    keys={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        # A key of the published files; the class has none, as ALiBi has no end.
        "max_positions": "seq_length",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    options={
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
        "position": "alibi",
        "embed_norm": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    only={"apply_residual_connection_post_layernorm": False},
    activation=None,
    rope="",
    model="transformer.",
    by_head=True,
)
