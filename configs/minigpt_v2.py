r"""MiniGPT-v2: one interface for many tasks (Chen et al., 2023, arXiv 2310.09478).

    modality encoder    EVA-CLIP ViT-g/14 at 448 px: 1024 patches, frozen
    input projector     4 neighbouring patches of a row joined, then a linear map 5632 -> D: 256 tokens
    LLM backbone        Llama 2 chat 7B, with LoRA of rank 64
    output projector    none: it answers in text, boxes as numbers from 0 to 100
    modality generator  none

Three stages on ever better data:

    mmjax train --config minigpt_v2:7b --workdir runs/minigpt --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Llama-2-7b-chat-hf \
        --config.stages.broad.data.path=/data/broad.jsonl --config.stages.tasks.data.path=/data/tasks.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

Trained weights: Vision-CAIR/MiniGPT-v2.
"""

from configs.parts import EVA_G_224, LLAMA2_7B, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import LLAMA_2

SIZES = {"7b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "MiniGPT-v2",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 at 448 px", "4 patches joined, linear map", "Llama 2 chat with LoRA"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("minigpt_v2", arg, SIZES), arg == "tiny"
    tower = tiny_tower({**EVA_G_224, "image_size": 448, "feature_strategy": "patches"}, tiny)
    # Squares in "blocks" are runs of `factor` squared features: here of one row, since rows come one by one.
    merge = {"kind": "merge", "in_width": tower["width"], "width": llm["width"], "factor": 2, "order": "blocks"}
    adapted = {"lora": lora(64, 16.0, ("q", "v")), "weight_decay": 0.05}
    trained = (PROJECTORS, LORA)
    return system(
        "minigpt_v2",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": merge},
        stages={
            "broad": stage(tiny, *trained, steps=400000, batch_size=96, learning_rate=1e-4, **adapted),
            "tasks": stage(tiny, *trained, steps=50000, batch_size=64, learning_rate=1e-5, **adapted),
            "instruct": stage(tiny, *trained, steps=35000, batch_size=24, learning_rate=1e-5, **adapted),
        },
        images={"image": squeezed(tower["image_size"])},
        template=LLAMA_2,
        lengths=(384, 512, 1024),
    )
