r"""Qwen2-VL: images and videos at their own resolution (Wang et al., 2024, arXiv 2409.12191).

    modality encoder    a ViT of 675M parameters over packed patches, rotary positions of row and column
    input projector     squares of 2 x 2 patches joined, norm before, MLP: a quarter of the patches
    LLM backbone        Qwen2 (1.5B, 7B, 72B) whose rotary positions have a time, height and width axis
    output projector    none: it answers in text
    modality generator  none

Three stages in the paper: tower, everything, and the LLM on instructions with the tower frozen. Its step counts,
batch sizes and learning rates are not published; those below are this project's.

    mmjax train --config qwen2_vl:2b --workdir runs/qwen2_vl --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/Qwen2-VL-2B-Instruct \
        --config.stages.pretrain.data.path=/data/pairs.jsonl --config.stages.tasks.data.path=/data/tasks.jsonl \
        --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: Qwen/Qwen2-VL-2B-Instruct, -7B-Instruct, -72B-Instruct.
"""

from configs.parts import QWEN2_1_5B, QWEN2_7B, QWEN2_72B, QWEN2_VISION, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, system
from configs.templates import QWEN2_VISION as ITEM
from configs.templates import chatml

# All sizes have 152064 words but the smallest.
SIZES = {"2b": QWEN2_1_5B, "7b": QWEN2_7B, "72b": QWEN2_72B, "tiny": tiny_llm(QWEN2_1_5B)}
ABOUT = {
    "title": "Qwen2-VL",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("ViT over packed patches", "2 x 2 merger, MLP", "Qwen2 with positions of three axes"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained on images",
}


def get_config(arg: str = "2b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("qwen2_vl", arg, SIZES), arg == "tiny"
    llm = {**llm, "rope_sections": (2, 3, 3) if tiny else (16, 24, 24)}
    tower = tiny_tower(QWEN2_VISION, tiny)
    merger = {
        "kind": "merge",
        "in_width": tower["width"],
        "width": llm["width"],
        "factor": 2,
        "order": "blocks",
        "norm_at": "before",
        "hidden": 4 * tower["width"],
    }
    everything = (ENCODERS, PROJECTORS, LLM)
    return system(
        "qwen2_vl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": merger},
        stages={
            "pretrain": stage(tiny, ENCODERS, PROJECTORS, steps=50000, batch_size=4096, learning_rate=2e-4),
            "tasks": stage(tiny, *everything, steps=20000, batch_size=4096, learning_rate=5e-5),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=8000, batch_size=1024, learning_rate=1e-5),
        },
        images={
            "image": {
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 56 * 56,
                "max_pixels": (56 * 56 if tiny else 28 * 28 * 1280),
            },
        },
        template=chatml(ITEM),
        lengths=(512, 1024, 2048, 4096),
        media_tokens={"image": ("<|image_pad|>", 151655)},
    )
