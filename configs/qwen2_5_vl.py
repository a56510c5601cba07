r"""Qwen2.5-VL: windows in the tower, positions of time in seconds (Bai et al., 2025, arXiv 2502.13923).

    modality encoder    a ViT over packed patches; most layers attend within windows of 112 x 112 pixels
    input projector     squares of 2 x 2 patches joined, RMSNorm before, MLP: a quarter of the patches
    LLM backbone        Qwen2.5 (3B, 7B, 72B) whose rotary positions have a time, height and width axis
    output projector    none: it answers in text
    modality generator  none

Three stages as in the paper: the tower alone, everything, long context; then instructions with the tower frozen. Token
counts are published, rates and batches are not: those below are this project's.

    mmjax train --config qwen2_5_vl:3b --workdir runs/qwen2_5_vl --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/Qwen2.5-VL-3B-Instruct \
        --config.stages.pretrain.data.path=/data/pairs.jsonl --config.stages.tasks.data.path=/data/tasks.jsonl \
        --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: Qwen/Qwen2.5-VL-3B-Instruct, -7B-Instruct, -72B-Instruct.
"""

from configs.parts import QWEN2_0_5B, QWEN2_7B, QWEN2_72B, tiny_llm, tiny_tower
from configs.rare_parts import QWEN2_5_VISION
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, system
from configs.templates import QWEN2_VISION as ITEM
from configs.templates import chatml

QWEN2_5_3B = {
    **QWEN2_0_5B, "width": 2048, "num_layers": 36, "num_heads": 16, "head_dim": 128, "mlp_width": 11008,
}  # fmt: skip
# The LLM, and F of the tower.
SIZES = {"3b": (QWEN2_5_3B, 3420), "7b": (QWEN2_7B, 3420), "72b": (QWEN2_72B, 3456), "tiny": (tiny_llm(QWEN2_5_3B), 96)}
ABOUT = {
    "title": "Qwen2.5-VL",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("ViT over packed patches, in windows", "2 x 2 merger, MLP", "Qwen2.5 with positions of three axes"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; parameters as published; tiny "
    "trained on images",
}


def get_config(arg: str = "3b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, hidden), tiny = choose("qwen2_5_vl", arg, SIZES), arg == "tiny"
    llm = {**llm, "rope_sections": (2, 3, 3) if tiny else (16, 24, 24)}
    tower = {**tiny_tower(QWEN2_5_VISION, tiny), "mlp_width": hidden}
    if tiny:
        tower |= {"window": 2, "full_layers": (1,)}
    merger = {
        "kind": "merge",
        "in_width": tower["width"],
        "width": llm["width"],
        "factor": 2,
        "order": "blocks",
        "norm": "rms",
        "norm_at": "before",
        "hidden": 4 * tower["width"],
    }
    everything = (ENCODERS, PROJECTORS, LLM)
    return system(
        "qwen2_5_vl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": merger},
        stages={
            "pretrain": stage(tiny, ENCODERS, PROJECTORS, steps=50000, batch_size=4096, learning_rate=2e-4),
            "tasks": stage(tiny, *everything, steps=60000, batch_size=4096, learning_rate=5e-5),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=8000, batch_size=1024, learning_rate=1e-5),
        },
        images={
            "image": {
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 56 * 56,
                "max_pixels": 56 * 56 if tiny else 28 * 28 * 1280,
            },
        },
        template=chatml(ITEM),
        lengths=(512, 1024, 2048, 4096),
        media_tokens={"image": ("<|image_pad|>", 151655)},
    )
