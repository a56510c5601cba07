r"""Monkey: detail from tiles, each with an adapter of its own (Li et al., 2024, arXiv 2311.06607).

    modality encoder    Qwen-VL's ViT-bigG/14 at 448 px on six tiles of an image of 896 x 1344 and on the whole, frozen;
                        low-rank adapters (rank 16) for the place of each tile
    input projector     Qwen-VL's resampler, shared: 256 queries a view, 1792 in all
    LLM backbone        Qwen 7B
    output projector    none: it answers in text
    modality generator  none

It goes on from Qwen-VL, so that no tower is trained at a high resolution. One stage on 1.44M instructions with
descriptions of several levels. Learning rate, batch and warm-up are published; its rank of 32 in the MLPs is 16 here.

    mmjax train --config monkey:9.8b --workdir runs/monkey --config.mesh.fsdp=-1 \
        --config.stages.instruct.data.path=/data/monkey_1_44m.jsonl

TextMonkey's windows over the borders of tiles and its choice of tokens are the sizes "text_" here: 768 tokens an image.

Trained weights: echo840/Monkey, echo840/TextMonkey (in Qwen-VL's own format, which is not read).
"""

from configs.parts import QWEN_7B, QWEN_BIGG_448, grid_of, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import CLIP_MEAN, CLIP_STD, choose, five, system
from configs.templates import chatml

# The LLM, and how many tokens TextMonkey keeps.
SIZES = {
    "9.8b": (QWEN_7B, None),
    "text_9.9b": (QWEN_7B, 768),
    "tiny": (tiny_llm(QWEN_7B), None),
    "tiny_text": (tiny_llm(QWEN_7B), 5),
}
ABOUT = {
    "title": "Monkey, TextMonkey",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("ViT-bigG/14 on six tiles and the whole, adapters", "cross-attention resampler", "Qwen 7B"),
    "verified": "adapters by tile equal to a loop over tiles; shifted windows and kept tokens by brute force; tiny "
    "trained, with the tower unchanged",
}
ADAPTERS = "encoders/image/(adapters|across)/.*"


def get_config(arg: str = "9.8b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, kept), tiny = choose("monkey", arg, SIZES), arg.startswith("tiny")
    tower, (rows, columns) = tiny_tower(QWEN_BIGG_448, tiny), (1, 2) if tiny else (2, 3)
    targets = ("q", "k", "v", "o", "up", "down")
    views = {
        "kind": "tile_adapters",
        "encoder": tower,
        "grid": (rows, columns),
        "lora": {"rank": 2 if tiny else 16, "alpha": 16.0, "targets": targets},
        "across": 0 if kept is None else 2,
    }
    projector = {
        "kind": "resampler",
        "in_width": tower["width"],
        "width": llm["width"],
        "grid": grid_of(tower),
        "query_grid": (2, 1) if tiny else (16, 16),
        "num_heads": llm["width"] // (16 if tiny else 128),
        "post": True,
    }
    if kept is not None:
        projector = {
            "kind": "similarity",
            "projector": projector,
            "views": 1 + rows * columns,
            "num_kept": kept,
            "num_heads": projector["num_heads"],
        }
    return system(
        "monkey",
        arg,
        llm,
        encoders={"image": views},
        projectors={"image": projector},
        stages={
            "instruct": stage(
                tiny, ADAPTERS, PROJECTORS, LLM, steps=1400, batch_size=1024, learning_rate=1e-5, warmup=100 / 1400,
                weight_decay=0.1, b2=0.95,
            ),
        },
        images={
            "image": {
                "views_processor_type": "GridViewsProcessor",
                "side": tower["image_size"],
                "rows": rows,
                "columns": columns,
                "image_mean": CLIP_MEAN,
                "image_std": CLIP_STD,
            },
        },
        template=chatml("'<img><' + part['type'] + '></img>\\n'"),
        lengths=(1024, 2048, 4096),
    )  # fmt: skip
