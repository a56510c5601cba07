"""Chameleon (transformers' ChameleonForConditionalGeneration): text and images in one vocabulary, heads normed apart.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/chameleon

Their class never lets the model write a code, and the decoder of its codes was never published: here it may write
them, and gives the codes without pixels.
"""

import dataclasses

from mmjax.interop.huggingface import chameleon_vqgan, llama
from mmjax.interop.huggingface.code_words import CodeWordsFamily

CODE = "IMGIMG"
DIGITS = "ABCDEFGHIJ"
NORMS = {"attn/q_norm": llama.LAYER + "self_attn.q_norm", "attn/k_norm": llama.LAYER + "self_attn.k_norm"}
TEXT = dataclasses.replace(
    llama.FAMILY,
    kind="chameleon",
    architecture="ChameleonForConditionalGeneration",
    names={**llama.NAMES, **NORMS},
    keys={name: key for name, key in llama.FAMILY.keys.items() if name != "head_dim"},
    defaults={
        **llama.DEFAULTS,
        "vocab_size": 65536,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
    },
    options={"qk_norm": True, "head_norms": True},
    # The larger model's norms stand behind the halves of a block alone.
    only={"swin_norm": False},
)


def _number(word: str) -> int | None:
    """The number of a code's word, whose digits are letters."""
    if not word.startswith(CODE):
        return None
    return int("".join(str(DIGITS.index(letter)) if letter in DIGITS else letter for letter in word[len(CODE) : -1]))


FAMILY = CodeWordsFamily(
    kind="chameleon",
    architecture="ChameleonForConditionalGeneration",
    text=TEXT,
    nested=False,
    vqgan=chameleon_vqgan,
    grid=lambda autoencoder: (autoencoder.image_size // autoencoder.downsampling,) * 2,
    word=lambda code: f"{CODE}{''.join(DIGITS[int(digit)] for digit in str(code))}Z",
    number=_number,
    begin="<racm3:break>",
    row_end="",
    tail=("<eoss>",),
    prefix="model.",
    head="lm_head.weight",
    codes="model.vqmodel.",
)
