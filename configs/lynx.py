r"""Lynx: what matters in training such models (Zeng et al., 2023, arXiv 2307.02469).

    modality encoder    EVA-CLIP ViT-g/14 at 420 px: 900 patches and the class token, frozen
    input projector     a Perceiver of 32 latents
    LLM backbone        Vicuna 7B, frozen, with adapters
    output projector    none: it answers in text
    modality generator  none

Its findings: the LLM reads the tokens as a prefix rather than through cross-attention; images of 420 px; diverse
prompts; noise in pairs hurts. The paper's adapters are bottlenecks between layers; LoRA stands for them here.
Step counts are this project's.

    mmjax train --config lynx:7b --workdir runs/lynx --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 \
        --config.stages.pretrain.data.path=/data/pairs.jsonl --config.stages.instruct.data.path=/data/tasks.jsonl
"""

from configs.parts import EVA_G_224, LLAMA_7B, perceiver, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "Lynx",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 at 420 px", "Perceiver of 32 latents", "Vicuna 7B with LoRA for its adapters"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("lynx", arg, SIZES), arg == "tiny"
    tower = tiny_tower({**EVA_G_224, "image_size": 420}, tiny)
    trained = (PROJECTORS, LORA)
    adapters = lora(64, 64.0, ("q", "k", "v", "o", "gate", "up", "down"))
    return system(
        "lynx",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": perceiver(tower, llm, tiny, num_latents=32)},
        stages={
            "pretrain": stage(
                tiny, *trained, steps=100000, batch_size=1024, learning_rate=1e-4, mode="plain", lora=adapters
            ),
            "instruct": stage(tiny, *trained, steps=20000, batch_size=256, learning_rate=2e-5, lora=adapters),
        },
        images={"image": squeezed(tower["image_size"])},
        template=VICUNA,
        lengths=(128, 256, 512, 1024),
    )
