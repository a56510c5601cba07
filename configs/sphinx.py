r"""SPHINX: mixed weights, mixed tasks, mixed visual embeddings (Lin et al., 2023, arXiv 2311.07575).

    modality encoder    CLIP ViT-L/14, CLIP ConvNeXt-XXL and DINOv2 ViT-g/14 at 224 px, all frozen; their maps
                        brought to one grid of 16 x 16, channels in a row
    input projector     a linear map 5632 -> D: 256 tokens
    LLM backbone        Llama 2 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

The paper has BLIP-2's Q-Former as a fourth view, with 32 tokens and a map of its own, and a variant that takes four
tiles besides the whole image; this config is the other three at one scale.

    mmjax train --config sphinx:13b --workdir runs/sphinx --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Llama-2-13b-hf \
        --config.stages.pretrain.data.path=/data/laion_400m.jsonl \
        --config.stages.finetune.data.path=/data/sphinx_tasks.jsonl

Trained weights: Alpha-VLLM/SPHINX (.pth files, which are not read).
"""

from configs.parts import CLIP_L_224, DINOV2_G_224, LLAMA2_13B, linear, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import CLIP_MEAN, CLIP_STD, choose, five, square, system
from configs.templates import VICUNA

SIZES = {"13b": LLAMA2_13B, "tiny": tiny_llm(LLAMA2_13B)}
ABOUT = {
    "title": "SPHINX",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L, CLIP ConvNeXt-XXL and DINOv2 ViT-g together", "linear map", "Llama 2 13B"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}
CONVNEXT_XXL = {"kind": "convnext", "image_size": 256, "widths": (384, 768, 1536, 3072), "depths": (3, 4, 30, 3)}
CONVNEXT_TINY = {"kind": "convnext", "image_size": 32, "widths": (8, 16), "depths": (1, 1)}
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("sphinx", arg, SIZES), arg == "tiny"
    clip = tiny_tower({**CLIP_L_224, "feature_layers": (-1,)}, tiny)
    dino, convnext = tiny_tower(DINOV2_G_224, tiny), CONVNEXT_TINY if tiny else CONVNEXT_XXL
    mixed = {
        "kind": "mixed",
        "encoders": {"clip": clip, "convnext": convnext, "dino": dino},
        "image_size": clip["image_size"],
        "grid_size": clip["image_size"] // clip["patch_size"],
        "normalization": CLIP,
        "normalizations": {"dino": IMAGENET},
    }
    width = clip["width"] + convnext["widths"][-1] + dino["width"]
    both = (PROJECTORS, LLM)
    return system(
        "sphinx",
        arg,
        llm,
        encoders={"image": mixed},
        projectors={"image": linear(width, llm)},
        stages={
            "pretrain": stage(tiny, *both, steps=180000, batch_size=256, learning_rate=5e-5, mode="plain"),
            "finetune": stage(tiny, *both, steps=130000, batch_size=128, learning_rate=2e-5),
        },
        images={"image": square(clip["image_size"], pad_to_square=True)},
        template=VICUNA,
        lengths=(384, 640, 1024, 2048),
    )
