r"""MobileVLM: a system for telephones (Chu et al., 2023, arXiv 2312.16886).

    modality encoder    CLIP ViT-L/14 at 336 px, frozen
    input projector     LDP, the lightweight downsample projector: 576 patches become 144 tokens
    LLM backbone        MobileLLaMA, 1.4B (D 2048) or 2.7B (D 2560)
    output projector    none: it answers in text
    modality generator  none

LLaVA-1.5's two stages on LLaVA-1.5's data:

    mmjax train --config mobilevlm:1.7b --workdir runs/mobilevlm \
        --config.init.backbone=/models/MobileLLaMA-1.4B-Chat \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.stages.pretrain.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.finetune.data.path=/data/llava_v1_5_mix665k.json

Trained weights: mtgv/MobileVLM-1.7B and MobileVLM-3B.
"""

from configs.parts import CLIP_L_336, MOBILELLAMA_1_4B, MOBILELLAMA_2_7B, grid_of, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA

SIZES = {"1.7b": MOBILELLAMA_1_4B, "3b": MOBILELLAMA_2_7B, "tiny": tiny_llm(MOBILELLAMA_1_4B)}
ABOUT = {
    "title": "MobileVLM",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px", "LDP: depthwise convolutions, a quarter of the tokens", "MobileLLaMA"),
    "verified": "144 tokens an image; the projector equal to a second implementation; tiny trained",
}


def get_config(arg: str = "1.7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("mobilevlm", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_336, tiny)
    ldp = {"kind": "ldp", "in_width": tower["width"], "width": llm["width"], "grid": grid_of(tower)}
    return system(
        "mobilevlm",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": ldp},
        stages={
            "pretrain": stage(tiny, PROJECTORS, steps=2180, batch_size=256, learning_rate=1e-3, mode="plain"),
            "finetune": stage(tiny, PROJECTORS, LLM, steps=5198, batch_size=128, learning_rate=2e-5),
        },
        images={"image": square(tower["image_size"], pad_to_square=True)},
        template=VICUNA,
        lengths=(256, 512, 1024, 2048),
    )
