r"""PaliGemma: SigLIP, one map, and Gemma as a prefix-LM (Beyer et al., 2024, arXiv 2407.07726).

    modality encoder    SigLIP So400m/14 at 224 or 448 px: 256 or 1024 features, trained
    input projector     a linear map 1152 -> D
    LLM backbone        Gemma 2B, or Gemma 2 2B (PaliGemma 2, arXiv 2412.03555); images and question see each other
                        both ways, the answer is causal
    output projector    none: it answers in text, boxes as <loc0000> (`mmjax.data.boxes`, "paligemma")
    modality generator  none

Nothing is frozen. The paper's first stage takes a billion examples at 224 px, its last one transfers to a task; batch
sizes and rates are as far as published, the warm-up of the tower alone is left out:

    mmjax train --config paligemma:3b_224 --workdir runs/paligemma --config.mesh.fsdp=-1 \
        --config.init.encoders.image=/models/siglip-so400m-patch14-224 --config.init.backbone=/models/gemma-2b \
        --config.stages.pretrain.data.path=/data/webli.jsonl --config.stages.transfer.data.path=/data/task.jsonl

Trained weights: google/paligemma-3b-pt-224, -448, google/paligemma2-3b-pt-224.
"""

from configs.parts import linear, tiny_llm, tiny_tower
from configs.rare_parts import GEMMA2_2B, GEMMA_2B, SIGLIP_SO400M_224, SIGLIP_SO400M_448
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import PREFIX

SIZES = {
    "3b_224": (GEMMA_2B, SIGLIP_SO400M_224),
    "3b_448": (GEMMA_2B, SIGLIP_SO400M_448),
    "2_3b_224": (GEMMA2_2B, SIGLIP_SO400M_224),
    "tiny": (tiny_llm(GEMMA_2B), SIGLIP_SO400M_224),
}
ABOUT = {
    "title": "PaliGemma",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("SigLIP So400m/14, trained", "linear map", "Gemma 2B or Gemma 2 2B as a prefix-LM"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; parameters as published; "
    "tiny trained",
}


def get_config(arg: str = "3b_224") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, tower), tiny = choose("paligemma", arg, SIZES), arg == "tiny"
    tower, everything = tiny_tower(tower, tiny), (ENCODERS, PROJECTORS, LLM)
    return system(
        "paligemma",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages={
            "pretrain": stage(tiny, *everything, steps=244141, batch_size=4096, learning_rate=3e-5),
            "transfer": stage(tiny, *everything, steps=10000, batch_size=256, learning_rate=1e-5),
        },
        images={"image": squeezed(tower["image_size"], **HALF)},
        template=PREFIX,
        lengths=(320, 384, 512) if tower["image_size"] == 224 else (1152, 1280),
        media_tokens={"image": ("<image>", 257152)},
        bidirectional="prefix",
    )
