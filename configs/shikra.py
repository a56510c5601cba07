r"""Shikra: referential dialogue, with coordinates as plain decimals (Chen et al., 2023, arXiv 2306.15195).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen
    input projector     a linear map 1024 -> D
    LLM backbone        Vicuna, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text, a box as [0.20,0.31,0.78,0.95] of the padded square
    modality generator  none

Both stages train map and LLM: first on reorganised VQA, captions and referring data, then with Shikra-RD:

    mmjax train --config shikra:7b --workdir runs/shikra --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.tasks.data.path=/data/shikra_stage1.jsonl \
        --config.stages.dialogue.data.path=/data/shikra_stage2.jsonl

Trained weights: shikras/shikra-7b-delta-v1 (differences to LLaMA).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, LLAMA_13B, linear, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "Shikra",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "linear map", "Vicuna (Llama)"),
    "verified": "shapes and counts of every size; tiny trained; boxes as text there and back",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("shikra", arg, SIZES), arg == "tiny"
    tower, both = tiny_tower(CLIP_L_224, tiny), (PROJECTORS, LLM)
    return system(
        "shikra",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages={
            "tasks": stage(tiny, *both, steps=100000, batch_size=64, learning_rate=2e-5),
            "dialogue": stage(tiny, *both, steps=20000, batch_size=64, learning_rate=2e-5),
        },
        images={"image": square(tower["image_size"], pad_to_square=True)},
        template=VICUNA,
        lengths=(384, 512, 1024, 2048),
    )
