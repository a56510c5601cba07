"""Phi-3 and Phi-4-mini (transformers' Phi3ForCausalLM): Llama with q, k, v and gate, up fused on disk.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/phi3
"""

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily

QKV, GATE_UP = llama.LAYER + "self_attn.qkv_proj", llama.LAYER + "mlp.gate_up_proj"


def write(config: DecoderConfig) -> Json:
    """Longrope's original context, which transformers reads from the top of config.json."""
    scaling = config.rope_scaling
    return {} if scaling is None else {"original_max_position_embeddings": scaling.original_max_positions}


FAMILY = TextFamily(
    kind="phi3",
    architecture="Phi3ForCausalLM",
    names={**llama.NAMES, "attn/q": QKV, "attn/k": QKV, "attn/v": QKV, "mlp/gate": GATE_UP, "mlp/up": GATE_UP},
    keys={**llama.KEYS, "sliding_window": "sliding_window"},
    defaults={
        **llama.DEFAULTS,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    rope="partial",
    write=write,
)
