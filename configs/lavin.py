r"""LaVIN: bottleneck adapters in every layer, weighed by whether a row has an image (Luo et al., 2023,
arXiv 2305.15023).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen
    input projector     six tokens an image through a narrow MLP
    LLM backbone        LLaMA, 7B or 13B, frozen; before every attention two adapters of eight channels, which a router
                        weighs by a learned token: text alone, or text with an image
    output projector    none: it answers in text
    modality generator  none

Both kinds of rows are trained at once, in one stage, and one model answers both. The paper's six tokens are CLIP's
class tokens of six depths, here they are its patches averaged to 3 x 2; its CLIP has adapters too, here it has none.

    mmjax train --config lavin:7b --workdir runs/lavin --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.instruct.data.path=/data/science_qa.jsonl

Rate, decay, epochs and batch size are those of the paper's ScienceQA (20 epochs of 12.7k questions).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, LLAMA_13B, grid_of, tiny_llm, tiny_tower
from configs.stages import FUSION, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import ALPACA

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "LaVIN",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "6 tokens, narrow MLP", "LLaMA with mixture-of-modality adapters"),
    "verified": "equal to a second implementation; the text model bit for bit at first; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("lavin", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_224, tiny)
    six = {
        "kind": "pool",
        "in_width": tower["width"],
        "width": llm["width"],
        "grid": grid_of(tower),
        "out_grid": (2, 1) if tiny else (3, 2),
        "pool_first": True,
        "hidden": 16 if tiny else 128,
        "activation": "silu",
    }
    return system(
        "lavin",
        arg,
        {**llm, "fusion": {"kind": "modality_adapters", "hidden": 8, "temperature": 10.0}},
        encoders={"image": tower},
        projectors={"image": six},
        stages={
            "instruct": stage(
                tiny, PROJECTORS, FUSION, steps=7950, batch_size=32, learning_rate=9e-3, warmup=0.1, weight_decay=0.02
            ),
        },
        images={"image": square(tower["image_size"])},
        template=ALPACA,
        lengths=(128, 256, 512),
    )
