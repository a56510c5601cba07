r"""Gemma 3: images as 256 tokens that see each other both ways (Gemma Team, 2025, arXiv 2503.19786).

    modality encoder    SigLIP So400m/14 at 896 px: 4096 features, frozen
    input projector     squares of 4 x 4 features averaged, RMSNorm, a linear map without bias: 256 tokens
    LLM backbone        Gemma 3 (4B, 12B, 27B): five layers with a window of 1024 to one without
    output projector    none: it answers in text
    modality generator  none

Distillation and reinforcement of the report are not published in detail; here is plain fine-tuning with this project's
numbers. Images that are cut in pieces (pan and scan) are shown whole:

    mmjax train --config gemma3:4b --workdir runs/gemma3 --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/gemma-3-4b-pt --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: google/gemma-3-4b-it, -12b-it, -27b-it.
"""

from configs.parts import grid_of, tiny_llm, tiny_tower
from configs.rare_parts import GEMMA3_4B, GEMMA3_12B, GEMMA3_27B, SIGLIP_SO400M_896
from configs.stages import LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import GEMMA

SIZES = {"4b": GEMMA3_4B, "12b": GEMMA3_12B, "27b": GEMMA3_27B, "tiny": tiny_llm(GEMMA3_4B)}
ABOUT = {
    "title": "Gemma 3",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("SigLIP So400m/14 at 896 px", "4 x 4 mean, norm, linear map", "Gemma 3 with windows"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; parameters as published; tiny "
    "trained",
}


def get_config(arg: str = "4b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("gemma3", arg, SIZES), arg == "tiny"
    tower = tiny_tower(SIGLIP_SO400M_896, tiny)
    pool = {
        "kind": "pool",
        "in_width": tower["width"],
        "width": llm["width"],
        "grid": grid_of(tower),
        "out_grid": (1, 1) if tiny else (16, 16),
        "pool_first": True,
        "norm": "rms",
        "norm_eps": tower["norm_eps"],
        "norm_offset": 1.0,
        "bias": False,
    }
    return system(
        "gemma3",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": pool},
        stages={"instruct": stage(tiny, PROJECTORS, LLM, steps=10000, batch_size=256, learning_rate=1e-5)},
        images={"image": squeezed(tower["image_size"], **HALF)},
        template=GEMMA,
        lengths=(512, 1024, 2048, 4096),
        media_tokens={"image": ("<image_soft_token>", 262144)},
        bidirectional="item",
    )
