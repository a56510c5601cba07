r"""LLaVA-OneVision: one model for images, several images and videos (Li et al., 2024, arXiv 2408.03326).

    modality encoder    SigLIP So400m/14 at 384 px without its last block, on an image's tiles or a video's frames
    input projector     MLP 1152 -> D -> D, shared by both ports; many tiles are scaled down, frames halved
    LLM backbone        Qwen2: 0.5B, 7B or 72B
    output projector    none: it answers in text
    modality generator  none

Stage 1 aligns the projector on 558k captions; 1.5 (4M re-captioned images), 2 (3.2M single images) and 3 (1.6M of
everything) train all of it, the tower at a fifth of the learning rate:

    mmjax train --config llava_onevision:7b --workdir runs/onevision --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Qwen2-7B-Instruct \
        --config.stages.align.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.knowledge.data.path=/data/recaptioned_4m.json \
        --config.stages.single_image.data.path=/data/single_image_3m.json \
        --config.stages.onevision.data.path=/data/onevision_1m.json

Trained weights: llava-hf/llava-onevision-qwen2-0.5b-ov-hf, -7b-ov-hf, -72b-ov-hf.
"""

from configs.parts import QWEN2_0_5B, QWEN2_7B, QWEN2_72B, SIGLIP_SO400M_384, grid_of, mlp, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, frames, squeezed, system
from configs.templates import CHATML

SIZES = {"0.5b": QWEN2_0_5B, "7b": QWEN2_7B, "72b": QWEN2_72B, "tiny": tiny_llm(QWEN2_0_5B)}
ABOUT = {
    "title": "LLaVA-OneVision",
    "inputs": ("text", "image", "video"),
    "outputs": ("text",),
    "parts": five("SigLIP So400m/14 at 384 px, on tiles or frames", "MLP, 2 layers, over tiles", "Qwen2"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llava_onevision", arg, SIZES), arg == "tiny"
    tower = tiny_tower({**SIGLIP_SO400M_384, "num_layers": 26}, tiny)
    side, most = tower["image_size"], 2 if tiny else 6
    resolutions = tuple((side * rows, side * columns) for rows in range(1, most + 1) for columns in range(1, most + 1))
    tiles = {
        "kind": "tiles",
        "projector": mlp(tower["width"], llm),
        "tile_size": side,
        "grid_size": grid_of(tower)[0],
        "resolutions": resolutions,
        "most_tiles": 9,
    }
    recipe = squeezed(side, **HALF)
    everything = (PROJECTORS, LLM, (ENCODERS, "train", 0.2))
    return system(
        "llava_onevision",
        arg,
        llm,
        encoders={"image": tower, "video": tower},
        projectors={"image": tiles, "video": {**tiles, "frames": "bilinear"}},
        stages={
            "align": stage(tiny, PROJECTORS, steps=1090, batch_size=512, learning_rate=1e-3, mode="plain"),
            "knowledge": stage(tiny, *everything, steps=7812, batch_size=512, learning_rate=1e-5),
            "single_image": stage(tiny, *everything, steps=6250, batch_size=512, learning_rate=1e-5),
            "onevision": stage(tiny, *everything, steps=3125, batch_size=512, learning_rate=1e-5),
        },
        images={
            "image": {
                **recipe,
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "image_grid_pinpoints": resolutions,
            },
            "video": frames(recipe, 4 if tiny else 32),
        },
        template=CHATML,
        lengths=(1024, 2048, 4096, 8192),
        media_tokens={"image": ("<image>", 151646), "video": ("<video>", 151647)},
        shared={"video": "image"},
    )
