r"""LLaVA: visual instruction tuning with one linear map (Liu et al., 2023, arXiv 2304.08485).

    modality encoder    CLIP ViT-L/14 at 224 px: 256 patches of the last layer but one, frozen throughout
    input projector     a linear map 1024 -> D
    LLM backbone        Vicuna, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

Two stages as published: the map alone on 595k captions of CC3M, then map and LLM on 158k instructions, thrice:

    mmjax train --config llava:7b --workdir runs/llava --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.pretrain.data.path=/data/chat.json \
        --config.stages.finetune.data.path=/data/llava_instruct_158k.json

Trained weights: liuhaotian/LLaVA-7b-delta-v0 and others, as differences to LLaMA.
"""

from configs.parts import CLIP_L_224, LLAMA_7B, LLAMA_13B, linear, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "LLaVA",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "linear map", "Vicuna (Llama)"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llava", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_224, tiny)
    return system(
        "llava",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages={
            "pretrain": stage(tiny, PROJECTORS, steps=4652, batch_size=128, learning_rate=2e-3, mode="plain"),
            "finetune": stage(tiny, PROJECTORS, LLM, steps=14812, batch_size=32, learning_rate=2e-5),
        },
        images={"image": square(tower["image_size"])},
        template=VICUNA,
        lengths=(320, 512, 1024, 2048),
    )
