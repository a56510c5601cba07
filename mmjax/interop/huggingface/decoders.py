"""All families of plain decoder-only LLMs, by their `model_type`."""

from mmjax.interop.huggingface import (
    bloom,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gptj,
    llama,
    mistral,
    mixtral,
    mpt,
    opt,
    persimmon,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from mmjax.interop.huggingface.text import TextFamily

# In the order in which they are asked whether a decoder can be written as one of them.
TEXT_MODULES = (
    llama, qwen2, mistral, qwen3, phi3, gemma, gemma2, gemma3, opt, gpt2, gpt_neox, gptj, phi, mpt, bloom,
    mixtral, qwen2_moe, qwen3_moe, persimmon,
)  # fmt: skip
TEXT: dict[str, TextFamily] = {module.FAMILY.kind: module.FAMILY for module in TEXT_MODULES}
