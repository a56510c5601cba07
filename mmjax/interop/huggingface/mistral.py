"""Mistral (transformers' MistralForCausalLM): Llama with a sliding window in every layer.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/mistral
"""

from mmjax.interop.huggingface import llama
from mmjax.interop.huggingface.text import TextFamily

FAMILY = TextFamily(
    kind="mistral",
    architecture="MistralForCausalLM",
    names=llama.NAMES,
    keys={**llama.KEYS, "sliding_window": "sliding_window"},
    defaults={
        **llama.DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
