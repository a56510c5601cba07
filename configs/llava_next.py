r"""LLaVA-NeXT: images in tiles, up to four times the pixels (Liu et al., 2024, "LLaVA-NeXT"; code name LLaVA-1.6).

    modality encoder    CLIP ViT-L/14 at 336 px, once for the whole image and once for each of up to four tiles
    input projector     MLP 1024 -> D -> D; padding cut off, a learned token ends each row of patches
    LLM backbone        Vicuna 1.5 (7B, 13B), Mistral 7B, or Nous-Hermes-2-Yi 34B
    output projector    none: it answers in text
    modality generator  none

The second stage trains the tower too, at a tenth of the learning rate, on 760k instructions:

    mmjax train --config llava_next:7b --workdir runs/next --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.stages.pretrain.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.finetune.data.path=/data/llava_next_760k.json

Trained weights: llava-hf/llava-v1.6-vicuna-7b-hf, -vicuna-13b-hf, -mistral-7b-hf, -34b-hf.
"""

from configs.parts import CLIP_L_336, LLAMA2_7B, LLAMA2_13B, MISTRAL_7B, YI_34B, grid_of, mlp, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import CHATML, LLAMA_2, VICUNA

SIZES = {
    "7b": LLAMA2_7B,
    "13b": LLAMA2_13B,
    "mistral_7b": MISTRAL_7B,
    "34b": YI_34B,
    "tiny": tiny_llm(MISTRAL_7B),
}
TEMPLATES = {"mistral_7b": LLAMA_2, "34b": CHATML}
# (height, width) in sides of a tile.
TILES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
ABOUT = {
    "title": "LLaVA-NeXT",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px, on up to 5 views", "MLP, 2 layers, over tiles", "Vicuna, Mistral or Yi"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llava_next", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_336, tiny)
    side = tower["image_size"]
    resolutions = tuple((side * rows, side * columns) for rows, columns in TILES)
    tiles = {
        "kind": "tiles",
        "projector": mlp(tower["width"], llm),
        "tile_size": side,
        "grid_size": grid_of(tower)[0],
        "resolutions": resolutions,
    }
    recipe = square(side, image_processor_type="LlavaNextImageProcessor", image_grid_pinpoints=resolutions)
    return system(
        "llava_next",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": tiles},
        stages={
            "pretrain": stage(tiny, PROJECTORS, steps=2180, batch_size=256, learning_rate=1e-3, mode="plain"),
            "finetune": stage(
                tiny, PROJECTORS, LLM, (ENCODERS, "train", 0.1), steps=5938, batch_size=128, learning_rate=2e-5
            ),
        },
        images={"image": recipe},
        template=TEMPLATES.get(arg, VICUNA),
        lengths=(1024, 2048, 3072, 4096),
    )
