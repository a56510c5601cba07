r"""GPT4RoI: boxes as tokens of a question (Zhang et al., 2023, arXiv 2307.03601).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: 256 patches; hidden states 14, 17, 20 and 23 for the boxes
    input projector     a linear map 1024 -> D; of a box one token, by RoIAlign from a pyramid of the four layers
    LLM backbone        Vicuna, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

First the reader of boxes alone, on boxes of objects (COCO, RefCOCO); then it, the map and the LLM on longer answers
(Visual Genome, Flickr30k, VCR, LLaVA). Learning rates as published; steps follow from two epochs of data of your own:

    mmjax train --config gpt4roi:7b --workdir runs/gpt4roi --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.align.data.path=/data/boxes.jsonl \
        --config.stages.instruct.data.path=/data/region_chats.jsonl

A region is a part of a message among its words, {"type": "region", "box": [x1, y1, x2, y2]}, as shares of the sides of
the latest image before it or of that whose number is said as "image"; with "pixels": true in pixels.

Trained weights: shilongz/GPT4RoI-7B-delta-V0 (differences to LLaMA).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, LLAMA_13B, linear, regions, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import VICUNA_IN_ORDER

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "GPT4RoI",
    "inputs": ("text", "image", "region"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "linear map; RoIAlign of four layers", "Vicuna (Llama)"),
    "verified": "shapes and counts of every size; tiny trained; its reader of boxes against a slow one in torch",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("gpt4roi", arg, SIZES), arg == "tiny"
    layers = (0, 1) if tiny else (14, 17, 20)
    tower = {**tiny_tower(CLIP_L_224, tiny), "extra_layers": layers}
    sizes = {"hidden": 16, "groups": 4, "fusions": 1, "out_size": 3, "place_hidden": 8, "token_width": 24}
    reader = {
        "kind": "roi_token",
        "in_widths": (tower["width"],) * (len(layers) + 1),
        "width": llm["width"],
        **(sizes if tiny else {}),
    }
    region = regions(reader, (*(f"layer_{layer}" for layer in layers), "features"))
    config = system(
        "gpt4roi",
        arg,
        llm,
        encoders={"image": tower, "region": region["encoder"]},
        projectors={"image": linear(tower["width"], llm), "region": region["projector"]},
        stages={
            "align": stage(
                tiny, "projectors/region/.*", steps=20000, batch_size=16, learning_rate=2e-5, warmup=0.003
            ),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=50000, batch_size=16, learning_rate=2e-5, warmup=0.06),
        },
        images={"image": squeezed(tower["image_size"]), "region": region["recipe"]},
        template=VICUNA_IN_ORDER,
        lengths=(384, 512, 1024, 2048),
        regions={"region": "image"},
    )
    config["processor"]["items"]["region"] = (0, 1, 2, 4, 8, 16)
    return config
