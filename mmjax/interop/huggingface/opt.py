"""OPT (transformers' OPTForCausalLM): learned positions that begin at row 2, layer norms, ReLU.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/opt
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.interop.huggingface.text import TextFamily

LAYER = "decoder.layers.{i}."


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """One switch for all biases.

    Raises:
        ConfigError: embeddings of another width than the blocks' (OPT 350M).
    """
    width = hf.get("word_embed_proj_dim") or hf["hidden_size"]
    if width != hf["hidden_size"]:
        raise ConfigError(
            f"config.json: word_embed_proj_dim {width} is not supported, only hidden_size {hf['hidden_size']}"
        )
    return {"out_bias": hf["enable_bias"], "mlp_bias": hf["enable_bias"]}


FAMILY = TextFamily(
    kind="opt",
    architecture="OPTForCausalLM",
    names={
        "embed": "decoder.embed_tokens",
        "positions": "decoder.embed_positions",
        "norm": "decoder.final_layer_norm",
        "attn_norm": LAYER + "self_attn_layer_norm",
        "attn/q": LAYER + "self_attn.q_proj",
        "attn/k": LAYER + "self_attn.k_proj",
        "attn/v": LAYER + "self_attn.v_proj",
        "attn/o": LAYER + "self_attn.out_proj",
        "mlp_norm": LAYER + "final_layer_norm",
        "mlp/up": LAYER + "fc1",
        "mlp/down": LAYER + "fc2",
    },
    keys={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "ffn_dim",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "qkv_bias": "enable_bias",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "enable_bias": True,
        "tie_word_embeddings": True,
        "activation_function": "relu",
    },
    options={"norm": "layer", "norm_eps": 1e-5, "gated": False, "position": "learned", "position_offset": 2},
    only={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
    },
    activation="activation_function",
    rope="",
    read=read,
    write=lambda config: {"word_embed_proj_dim": config.width},
)
