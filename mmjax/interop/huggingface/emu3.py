"""Emu3 (transformers' Emu3ForConditionalGeneration): a Llama that reads and writes images as VQ codes, row by row.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/emu3
"""

import dataclasses

from mmjax.interop.huggingface import emu3_vqgan, llama
from mmjax.interop.huggingface.code_words import CodeWordsFamily

CODE = "<|visual token "
TEXT = dataclasses.replace(
    llama.FAMILY,
    kind="emu3_text_model",
    architecture="Emu3ForCausalLM",
    defaults={
        **llama.DEFAULTS,
        "vocab_size": 184622,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 9216,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "eos_token_id": 151850,
        "pad_token_id": 151643,
    },
)


def _number(word: str) -> int | None:
    """The number of a code's word, as transformers reads it."""
    return int(word[-8:-2]) if word.startswith(CODE) else None


FAMILY = CodeWordsFamily(
    kind="emu3",
    architecture="Emu3ForConditionalGeneration",
    text=TEXT,
    nested=True,
    vqgan=emu3_vqgan,
    # Images of 720 x 720 pixels.
    grid=lambda autoencoder: (90, 90),
    word=lambda code: f"{CODE}{code:06d}|>",
    number=_number,
    begin="<|image token|>",
    row_end="<|extra_200|>",
    tail=("<|extra_201|>", "<|image end|>", ""),
    prefix="text_model.model.",
    head="text_model.lm_head.weight",
    codes="vqmodel.",
    spellings=(
        (r"^model\.text_model\.", "text_model.model."),
        (r"^model\.vqmodel\.", "vqmodel."),
        (r"^lm_head\.", "text_model.lm_head."),
    ),
)
