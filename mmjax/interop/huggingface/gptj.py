"""GPT-J (transformers' GPTJForCausalLM): halves side by side behind one norm, neighbouring channels rotated.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gptj
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.interop.huggingface import gpt2
from mmjax.interop.huggingface.text import TextFamily

LAYER = "h.{i}."


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rotated part of a head.

    Raises:
        ConfigError: there is none.
    """
    if not hf["rotary_dim"]:
        raise ConfigError("config.json: rotary_dim must be a number of channels")
    return {"rotary_fraction": hf["rotary_dim"] * hf["n_head"] / hf["n_embd"]}


FAMILY = TextFamily(
    kind="gptj",
    architecture="GPTJForCausalLM",
    names={
        "embed": "wte",
        "norm": "ln_f",
        "attn_norm": LAYER + "ln_1",
        "attn/q": LAYER + "attn.q_proj",
        "attn/k": LAYER + "attn.k_proj",
        "attn/v": LAYER + "attn.v_proj",
        "attn/o": LAYER + "attn.out_proj",
        "mlp/up": LAYER + "mlp.fc_in",
        "mlp/down": LAYER + "mlp.fc_out",
    },
    keys=gpt2.KEYS,
    defaults={
        **gpt2.DEFAULTS,
        "vocab_size": 50400,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "n_positions": 2048,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
    options={
        "norm": "layer",
        "gated": False,
        "mlp_bias": True,
        "parallel": True,
        "shared_norm": True,
        "rotary_interleaved": True,
        "head_bias": True,
    },
    activation="activation_function",
    rope="",
    read=read,
    write=lambda config: {"rotary_dim": config.rotary_width},
    model="transformer.",
)
