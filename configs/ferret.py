r"""Ferret: points, boxes and free shapes in a question, boxes in the answer (You et al., 2023, arXiv 2310.07704).

    modality encoder    CLIP ViT-L/14 at 336 px: 576 patches
    input projector     a linear map 1024 -> D; of a region one token, of points drawn in it and merged
    LLM backbone        Vicuna 1.3, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text, boxes as whole numbers of a thousand
    modality generator  none

The map begins with LLaVA's, trained on captions; then everything but the tower is trained on GRIT, three epochs:

    mmjax train --config ferret:7b --workdir runs/ferret --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.3 \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.stages.pretrain.data.path=/data/chat.json \
        --config.stages.instruct.data.path=/data/grit.jsonl

Batch size and learning rate of the second stage are those of the published script; its steps follow from the 1.1
million samples of GRIT. A region is a part of a message among its words, {"type": "region", "point": [x, y]}, or "box",
"polygon" or "mask"; a point is a disc of 5 of 336 pixels.

Trained weights: apple/ml-ferret (differences to Vicuna).
"""

from configs.parts import CLIP_L_336, LLAMA_7B, LLAMA_13B, linear, regions, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import VICUNA_IN_ORDER

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "Ferret",
    "inputs": ("text", "image", "region"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px", "linear map; points of a region merged", "Vicuna 1.3 (Llama)"),
    "verified": "shapes and counts of every size; tiny trained; its sampler against a slow one in torch",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("ferret", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_336, tiny)
    sizes = {"num_points": 16, "kept": (6, 3), "neighbours": (4, 3)} if tiny else {}
    reader = {
        "kind": "sampled_token",
        "in_widths": (tower["width"],),
        "width": llm["width"],
        "pool": "max",
        **sizes,
    }
    side = tower["image_size"]
    region = regions(reader, ("features",), (side, side))
    config = system(
        "ferret",
        arg,
        llm,
        encoders={"image": tower, "region": region["encoder"]},
        projectors={"image": linear(tower["width"], llm), "region": region["projector"]},
        stages={
            "pretrain": stage(
                tiny, "projectors/image/.*", steps=4650, batch_size=128, learning_rate=2e-3, mode="plain"
            ),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=25800, batch_size=128, learning_rate=2e-5),
        },
        images={"image": squeezed(side), "region": region["recipe"]},
        template=VICUNA_IN_ORDER,
        lengths=(704, 1024, 1536, 2048),
        regions={"region": "image"},
    )
    config["processor"]["items"]["region"] = (0, 1, 2, 4, 8, 16)
    return config
