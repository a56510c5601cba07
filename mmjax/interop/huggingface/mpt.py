"""MPT (transformers' MptForCausalLM): ALiBi, no biases, not even in the layer norms.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/mpt
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily

LAYER = "blocks.{i}."
# What the class does whatever config.json says; anything else there would be another model.
ATTENTION = {
    "attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False, "alibi": True, "alibi_bias_max": 8,
}  # fmt: skip


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The options in attn_config.

    Raises:
        ConfigError: one that transformers' class does not have.
    """
    given = {**ATTENTION, **(hf.get("attn_config") or {})}
    for key, value in ATTENTION.items():
        if given[key] != value:
            raise ConfigError(f"config.json: attn_config.{key} {given[key]!r} is not supported, only {value!r}")
    return {"qkv_clip": given.get("clip_qkv") or None, "attention_scale": given.get("softmax_scale")}


def write(config: DecoderConfig) -> Json:
    """The key of `read`."""
    own = {"clip_qkv": config.qkv_clip, "softmax_scale": config.attention_scale}
    return {"attn_config": {**ATTENTION, **own}}


FAMILY = TextFamily(
    kind="mpt",
    architecture="MptForCausalLM",
    names={
        "embed": "wte",
        "norm": "norm_f",
        "attn_norm": LAYER + "norm_1",
        "attn/q": LAYER + "attn.Wqkv",
        "attn/k": LAYER + "attn.Wqkv",
        "attn/v": LAYER + "attn.Wqkv",
        "attn/o": LAYER + "attn.out_proj",
        "mlp_norm": LAYER + "norm_2",
        "mlp/up": LAYER + "ffn.up_proj",
        "mlp/down": LAYER + "ffn.down_proj",
    },
    keys={
        "vocab_size": "vocab_size",
        "width": "d_model",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "max_positions": "max_seq_len",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={
        "vocab_size": 50368,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 16,
        "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    options={"norm": "layer", "norm_bias": False, "gated": False, "activation": "gelu", "position": "alibi"},
    only={"expansion_ratio": 4, "no_bias": True, "logit_scale": None},
    activation=None,
    rope="",
    read=read,
    write=write,
    model="transformer.",
)
