r"""Qwen-VL: 448 pixels, one layer of cross-attention, three stages (Bai et al., 2023, arXiv 2308.12966).

    modality encoder    ViT-bigG/14 at 448 px: 1024 patches (1.9B parameters)
    input projector     resampler: 256 queries with two-dimensional positions (0.08B)
    LLM backbone        Qwen 7B (7.7B)
    output projector    none: it answers in text, boxes as <box>(x, y),(x, y)</box> in thousandths
    modality generator  none

Stage 1 leaves the LLM frozen (1.4B pairs, at 224 px), stage 2 trains all (448 px, seven tasks), stage 3 freezes the
tower:

    mmjax train --config qwen_vl:7b --workdir runs/qwen_vl --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Qwen-7B \
        --config.stages.pretrain.data.path=/data/pairs.jsonl --config.stages.tasks.data.path=/data/tasks.jsonl \
        --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: Qwen/Qwen-VL and Qwen-VL-Chat (in a format of their own, which is not read).
"""

from configs.parts import QWEN_7B, QWEN_BIGG_448, grid_of, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import chatml

SIZES = {"7b": QWEN_7B, "tiny": tiny_llm(QWEN_7B)}
ABOUT = {
    "title": "Qwen-VL",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("ViT-bigG/14 at 448 px", "cross-attention resampler, 256 queries", "Qwen 7B"),
    "verified": "1.9B + 0.08B + 7.7B parameters as published; tiny trained. All stages here run at 448 px",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("qwen_vl", arg, SIZES), arg == "tiny"
    tower = tiny_tower(QWEN_BIGG_448, tiny)
    resampler = {
        "kind": "resampler",
        "in_width": tower["width"],
        "width": llm["width"],
        "grid": grid_of(tower),
        "query_grid": (2, 1) if tiny else (16, 16),
        "num_heads": llm["width"] // (16 if tiny else 128),
        "post": True,
    }
    settings = {"weight_decay": 0.05, "b2": 0.98}
    return system(
        "qwen_vl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": resampler},
        stages={
            "pretrain": stage(
                tiny, ENCODERS, PROJECTORS, steps=50000, batch_size=30720, learning_rate=2e-4, warmup=0.01,
                mode="plain", **settings,
            ),
            "tasks": stage(
                tiny, ENCODERS, PROJECTORS, LLM, steps=19000, batch_size=4096, learning_rate=5e-5, warmup=0.021,
                **settings,
            ),
            "instruct": stage(
                tiny, PROJECTORS, LLM, steps=8000, batch_size=1024, learning_rate=1e-5, warmup=0.375, **settings
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=chatml("'Picture: <img><' + part['type'] + '></img>\\n'"),
        lengths=(512, 1024, 2048),
    )  # fmt: skip
