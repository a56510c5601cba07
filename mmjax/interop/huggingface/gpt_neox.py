"""GPT-NeoX and Pythia (transformers' GPTNeoXForCausalLM): halves side by side, a part of each head rotated.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gpt_neox
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface.spelling import Json, rope_from_hf, rope_to_hf, rotary_fraction_from_hf
from mmjax.interop.huggingface.text import TextFamily

LAYER = "layers.{i}."


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions, whose older keys are this family's own."""
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    older = {"rope_theta": hf["rotary_emb_base"], "partial_rotary_factor": hf["rotary_pct"]}
    rope = {"rope_parameters": {**older, **given}}
    theta, scaling = rope_from_hf(rope, hf["max_position_embeddings"], partial=True)
    fraction = rotary_fraction_from_hf(rope)
    return {
        "rope_theta": theta, "rope_scaling": scaling, "rotary_fraction": fraction, "out_bias": hf["attention_bias"],
    }  # fmt: skip


def write(config: DecoderConfig) -> Json:
    """The keys of `read`."""
    rope = rope_to_hf(config.rope_theta, config.rope_scaling, config.rotary_fraction)
    return {**rope, "rotary_pct": config.rotary_fraction, "rotary_emb_base": config.rope_theta}


FAMILY = TextFamily(
    kind="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    names={
        "embed": "embed_in",
        "norm": "final_layer_norm",
        "attn_norm": LAYER + "input_layernorm",
        "attn/q": LAYER + "attention.query_key_value",
        "attn/k": LAYER + "attention.query_key_value",
        "attn/v": LAYER + "attention.query_key_value",
        "attn/o": LAYER + "attention.dense",
        "mlp_norm": LAYER + "post_attention_layernorm",
        "mlp/up": LAYER + "mlp.dense_h_to_4h",
        "mlp/down": LAYER + "mlp.dense_4h_to_h",
    },
    keys={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "parallel": "use_parallel_residual",
        "qkv_bias": "attention_bias",
    },
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
    },
    options={"norm": "layer", "gated": False, "mlp_bias": True},
    rope="",
    read=read,
    write=write,
    model="gpt_neox.",
    head="embed_out.weight",
    by_head=True,
)
