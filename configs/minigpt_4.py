r"""MiniGPT-4: BLIP-2's eyes, one linear map, Vicuna (Zhu et al., 2023, arXiv 2304.10592).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, frozen
    input projector     BLIP-2's Q-Former, frozen: 32 tokens; the linear map behind it 768 -> D is all that is trained
    LLM backbone        Vicuna, 7B (D 4096) or 13B (D 5120), frozen
    output projector    none: it answers in text
    modality generator  none

Stage 1 takes 5M pairs of LAION, CC and SBU; stage 2 only 3.5k long descriptions, chosen and mended:

    mmjax train --config minigpt_4:13b --workdir runs/minigpt --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-13b \
        --config.stages.align.data.path=/data/laion_cc_sbu.jsonl \
        --config.stages.describe.data.path=/data/cc_sbu_align.jsonl

Trained weights: Vision-CAIR/MiniGPT-4 (the linear map as a .pth file; tower and Q-Former are BLIP-2's).
"""

from configs.parts import EVA_G_224, LLAMA_7B, LLAMA_13B, qformer, tiny_llm, tiny_tower
from configs.stages import stage
from configs.system import choose, five, squeezed, system
from configs.templates import HUMAN

SIZES = {"13b": LLAMA_13B, "7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "MiniGPT-4",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14", "Q-Former (frozen) and a linear map", "Vicuna (Llama)"),
    "verified": "shapes and counts of every size; tiny trained: nothing but the linear map moves",
}
MAP = "projectors/image/out/.*"


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("minigpt_4", arg, SIZES), arg == "tiny"
    tower = tiny_tower(EVA_G_224, tiny)
    settings = {"weight_decay": 0.05, "warmup": 0.0}
    return system(
        "minigpt_4",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": qformer(tower, llm, tiny)},
        stages={
            "align": stage(tiny, MAP, steps=20000, batch_size=256, learning_rate=1e-4, **settings),
            "describe": stage(tiny, MAP, steps=400, batch_size=12, learning_rate=3e-5, **settings),
        },
        images={"image": squeezed(tower["image_size"])},
        template=HUMAN,
        lengths=(128, 192, 256, 512),
    )
