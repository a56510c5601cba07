"""Mixtral (transformers' MixtralForCausalLM): Mistral with experts in place of every MLP.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/mixtral
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily
from mmjax.nn.moe import MixtureConfig

MIXTURE = llama.LAYER + "block_sparse_moe."
NAMES = {
    **{ours: theirs for ours, theirs in llama.NAMES.items() if not ours.startswith("mlp/")},
    "mlp/router": MIXTURE + "gate",
    "mlp/experts/gate": MIXTURE + "experts.{j}.w1",
    "mlp/experts/up": MIXTURE + "experts.{j}.w3",
    "mlp/experts/down": MIXTURE + "experts.{j}.w2",
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The experts; their width is what the MLP's is elsewhere."""
    return {"moe": MixtureConfig(hf["num_local_experts"], hf["num_experts_per_tok"], hf["intermediate_size"])}


def write(config: DecoderConfig) -> Json:
    """The keys that `read` reads."""
    moe = config.moe
    if moe is None:
        return {}
    return {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.width,
    }


FAMILY = TextFamily(
    kind="mixtral",
    architecture="MixtralForCausalLM",
    names=NAMES,
    keys={**llama.KEYS, "sliding_window": "sliding_window"},
    defaults={
        **llama.DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    only={"router_jitter_noise": 0.0},
    aliases={"num_experts": "num_local_experts"},
    spellings=((r"\.mlp\.(gate|experts)\.", r".block_sparse_moe.\1."),),
    read=read,
    write=write,
)
