"""Qwen1.5-MoE and Qwen2-MoE (transformers' Qwen2MoeForCausalLM): Qwen2 with experts, one of them for all tokens.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_moe
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface import llama, qwen2
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.text import TextFamily, windowed_layers, windows
from mmjax.nn.moe import MixtureConfig

MIXTURE = llama.LAYER + "mlp."
NAMES = {
    **{ours: theirs for ours, theirs in llama.NAMES.items() if not ours.startswith("mlp/")},
    "mlp/router": MIXTURE + "gate",
    "mlp/experts/gate": MIXTURE + "experts.{j}.gate_proj",
    "mlp/experts/up": MIXTURE + "experts.{j}.up_proj",
    "mlp/experts/down": MIXTURE + "experts.{j}.down_proj",
}
SHARED = {
    "mlp/shared/gate": MIXTURE + "shared_expert.gate_proj",
    "mlp/shared/up": MIXTURE + "shared_expert.up_proj",
    "mlp/shared/down": MIXTURE + "shared_expert.down_proj",
    "mlp/shared_gate": MIXTURE + "shared_expert_gate",
}
DEFAULTS = {
    **qwen2.DEFAULTS,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
}


def experts(hf: Mapping[str, Any], **shared: Any) -> MixtureConfig:
    """The experts of Qwen2-MoE and Qwen3-MoE; `shared` is what MixtureConfig says of a shared one.

    Raises:
        ConfigError: some layers have none.
    """
    plain, step, count = hf.get("mlp_only_layers") or (), hf["decoder_sparse_step"], hf["num_hidden_layers"]
    layers = [layer for layer in range(count) if layer in plain or (layer + 1) % step]
    if layers or not hf["num_experts"]:
        raise ConfigError(
            f"config.json: mlp_only_layers {list(plain)}, decoder_sparse_step {step} and num_experts "
            f"{hf['num_experts']} leave layers {layers or 'of any number'} of {count} without experts; a decoder "
            "here has experts in all its layers or in none"
        )
    return MixtureConfig(
        hf["num_experts"],
        hf["num_experts_per_tok"],
        hf["moe_intermediate_size"],
        normalize=hf["norm_topk_prob"],
        **shared,
    )


def write_experts(config: DecoderConfig) -> Json:
    """The keys that `experts` reads."""
    moe = config.moe
    if moe is None:
        return {}
    return {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.width,
        "norm_topk_prob": moe.normalize,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Experts, and windows: every second layer has one, of the first max_window_layers."""
    kinds = windowed_layers(hf, lambda layer: layer % 2 == 0 and layer < hf["max_window_layers"])
    moe = experts(hf, shared_width=hf["shared_expert_intermediate_size"], shared_gate=True)
    return {"moe": moe, **windows(hf["sliding_window"] if hf["use_sliding_window"] else None, kinds)}


def write(config: DecoderConfig) -> Json:
    """The keys that `read` reads."""
    shared = {} if config.moe is None else {"shared_expert_intermediate_size": config.moe.shared_width}
    return {**qwen2.write(config), **write_experts(config), **shared}


FAMILY = TextFamily(
    kind="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    names={**NAMES, **SHARED},
    keys={**llama.KEYS, "qkv_bias": "qkv_bias"},
    defaults={
        **DEFAULTS,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "qkv_bias": True,
    },
    read=read,
    write=write,
)
