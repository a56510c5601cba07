"""Gemma 3's LLM (transformers' Gemma3ForCausalLM): windowed layers with a rotary base of their own, normed heads.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma3
"""

from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface import gemma2, qwen3
from mmjax.interop.huggingface.spelling import Json, rope_from_hf, rope_to_hf
from mmjax.interop.huggingface.text import TextFamily, windowed_layers, windows


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Windows, and the two kinds of rotary positions in either spelling."""
    kinds = windowed_layers(hf, lambda layer: (layer + 1) % hf["sliding_window_pattern"] != 0)
    found = windows(hf["sliding_window"], kinds)
    given = hf.get("rope_parameters") or {}
    near, whole = (dict(given.get(kind) or {}) for kind in ("sliding_attention", "full_attention"))
    if near.get("rope_type", "default") != "default":
        raise ConfigError(f"config.json: rope type {near['rope_type']!r} of sliding_attention is not supported")
    whole = {"rope_theta": hf["rope_theta"], **whole, **(hf.get("rope_scaling") or {})}
    theta, scaling = rope_from_hf({"rope_parameters": whole}, hf["max_position_embeddings"])
    own = float(near.get("rope_theta") or hf["rope_local_base_freq"])
    found["window_rope_theta"] = own if found["sliding_window"] else None
    return {**gemma2.shared(hf), **found, "qk_norm": True, "rope_theta": theta, "rope_scaling": scaling}


def write(config: DecoderConfig) -> Json:
    """The keys of `read`; transformers 5 has rotary positions by kind of layer, 4 has keys for each."""
    rope = rope_to_hf(config.rope_theta, config.rope_scaling)
    own = config.window_rope_theta or DEFAULTS["rope_local_base_freq"]
    near = {"rope_type": "default", "rope_theta": own}
    kinds = {"full_attention": rope["rope_parameters"], "sliding_attention": near}
    return {**gemma2.write(config), **rope, "rope_parameters": kinds, "rope_local_base_freq": own}


DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}
FAMILY = TextFamily(
    kind="gemma3_text",
    architecture="Gemma3ForCausalLM",
    names={**gemma2.NAMES, **qwen3.NORMS},
    keys={ours: theirs for ours, theirs in gemma2.KEYS.items() if ours != "attention_cap"},
    defaults=DEFAULTS,
    # transformers' class reads the cap on attention's logits and does not apply it.
    only={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    activation="hidden_activation",
    rope="",
    read=read,
    write=write,
)
