r"""DocPedia: pages of 2560 x 2560 pixels, read in the frequency domain (Feng et al., 2023, arXiv 2311.11810).

    modality encoder    cosine coefficients of blocks of 8 x 8 pixels, as JPEG has them, and a Swin transformer over the
                        320 x 320 blocks: 1600 features, trained in the first stage
    input projector     a linear map 1024 -> D
    LLM backbone        Vicuna 7B, trained in the second stage
    output projector    none: it answers in text
    modality generator  none

Tokens count the area of a page, and coefficients hold all of its pixels. Stage 1 reads (detection, recognition and
spotting of text; paragraphs; whole pages), stage 2 understands. In the paper the coefficients of luma and chroma are
mapped apart; here one map takes those of the three colours. Steps are as far as published.

    mmjax train --config docpedia:7b --workdir runs/docpedia --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 --config.stages.read.data.path=/data/ocr_pages.jsonl \
        --config.stages.understand.data.path=/data/documents.jsonl
"""

from configs.parts import LLAMA2_7B, linear, tiny_llm
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import VICUNA

SWIN_2560 = {
    "kind": "swin",
    "image_size": 2560,
    "patch_size": 8,
    "width": 128,
    "depths": (2, 2, 18, 2),
    "num_heads": (4, 8, 16, 32),
    "window_size": 10,
}
TINY_SWIN = {**SWIN_2560, "image_size": 64, "width": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 2}
SIZES = {"7b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "DocPedia",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("8 x 8 cosine transform, Swin-B at 2560 px", "linear map", "Vicuna 7B"),
    "verified": "the transform equal to scipy's, and invertible; 1600 tokens a page; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("docpedia", arg, SIZES), arg == "tiny"
    swin = TINY_SWIN if tiny else SWIN_2560
    width = swin["width"] * 2 ** (len(swin["depths"]) - 1)
    return system(
        "docpedia",
        arg,
        llm,
        encoders={"image": {"kind": "dct", "encoder": swin}},
        projectors={"image": linear(width, llm)},
        stages={
            "read": stage(tiny, ENCODERS, PROJECTORS, steps=10000, batch_size=64, learning_rate=1e-3, mode="plain"),
            "understand": stage(tiny, ENCODERS, PROJECTORS, LLM, steps=8000, batch_size=64, learning_rate=1e-5),
        },
        images={"image": squeezed(swin["image_size"])},
        template=VICUNA,
        lengths=(1792, 2048, 4096),
    )
