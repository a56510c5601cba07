r"""LLaMA-Adapter: learned prompts in the top layers of a frozen LLM, behind gates that start at zero
(Zhang et al., 2023, arXiv 2303.16199).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: features of four depths
    input projector     their mean over the image, and a linear map: one vector an image
    LLM backbone        LLaMA 7B, frozen; ten prompts in each of its last 30 layers, to which the vector is added
    output projector    none: it answers in text
    modality generator  none

An image leaves no token in the text: every token reads the prompts, and the prompts hold the image. 1.2M numbers are
trained beside the linear map. The paper takes CLIP's class tokens of several depths, here it is the mean of the
patches; batch size, steps and learning rate are those of its 52k instructions.

    mmjax train --config llama_adapter:7b --workdir runs/llama_adapter --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.instruct.data.path=/data/instructions.json

`llama_adapter_v2` is its successor.
"""

from configs.parts import CLIP_L_224, LLAMA_7B, grid_of, tiny_llm, tiny_tower
from configs.stages import FUSION, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import ALPACA

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "LLaMA-Adapter",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px, four depths", "mean, linear", "LLaMA with gated prompts"),
    "verified": "prompts and gates equal to peft's; the text model bit for bit at first; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llama_adapter", arg, SIZES), arg == "tiny"
    depths = (1, 2, 3) if tiny else (6, 12, 18, 24)
    tower = {**tiny_tower(CLIP_L_224, tiny), "feature_layers": depths}
    mean = {
        "kind": "pool",
        "in_width": len(depths) * tower["width"],
        "width": llm["width"],
        "grid": grid_of(tower),
        "out_grid": (1, 1),
        "pool_first": True,
    }
    fusion = {"kind": "adapter_prompts", "num_prompts": 3 if tiny else 10, "layers": 1 if tiny else 30}
    return system(
        "llama_adapter",
        arg,
        {**llm, "fusion": fusion},
        encoders={"image": tower},
        projectors={"image": mean},
        stages={
            "instruct": stage(
                tiny, PROJECTORS, FUSION, steps=4060, batch_size=64, learning_rate=9e-3, warmup=0.4, weight_decay=0.02
            ),
        },
        images={"image": square(tower["image_size"])},
        template=ALPACA,
        lengths=(128, 256, 512),
        unmarked=("image",),
        inside=("image",),
    )
