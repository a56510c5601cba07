r"""Osprey: masks as tokens of a question, pixel by pixel (Yuan et al., 2024, arXiv 2312.10032).

    modality encoder    OpenCLIP ConvNeXt-L at 512 px, frozen: 1024 places of its third map; all four for the masks
    input projector     MLP 768 -> D -> D with GELU; of a mask two tokens, of what is under it and of its shape
    LLM backbone        Vicuna 1.5, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

Captions for the MLP, then masks for their reader alone, then instructions (Osprey-724K) for all but the tower. Batch
sizes, learning rates and epochs are those of the published scripts, steps follow from the sizes of their data sets as
far as published:

    mmjax train --config osprey:7b --workdir runs/osprey --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.stages.pretrain.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.align.data.path=/data/masks.jsonl \
        --config.stages.instruct.data.path=/data/osprey_724k.jsonl

The tower's published weights are OpenCLIP's, a layout that no reader here knows; in transformers' layout of ConvNeXt
they are read with --config.init.encoders.image=DIR.

A region is a part of a message among its words, {"type": "region", "mask": FILE}, or "polygon", "box" or "point".

Trained weights: sunshine-lwt/Osprey-7b.
"""

from configs.parts import CLIP_CONVNEXT_L_512, LLAMA2_7B, LLAMA2_13B, mlp, regions, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA_IN_ORDER

SIZES = {"7b": LLAMA2_7B, "13b": LLAMA2_13B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "Osprey",
    "inputs": ("text", "image", "region"),
    "outputs": ("text",),
    "parts": five("CLIP ConvNeXt-L at 512 px", "MLP; means under masks of four maps", "Vicuna 1.5 (Llama 2)"),
    "verified": "shapes and counts of every size; tiny trained; its reader of masks against a slow one in torch",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("osprey", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_CONVNEXT_L_512, tiny)
    side, widths = tower["image_size"], tower["widths"]
    sizes = {"hidden": 24, "mask_size": 8} if tiny else {}
    reader = {"kind": "mask_tokens", "in_widths": widths, "width": llm["width"], **sizes}
    region = regions(reader, ("stage_0", "stage_1", "features", "stage_3"), (side, side))
    config = system(
        "osprey",
        arg,
        llm,
        encoders={"image": tower, "region": region["encoder"]},
        projectors={"image": mlp(widths[2], llm), "region": region["projector"]},
        stages={
            "pretrain": stage(
                tiny, "projectors/image/.*", steps=4360, batch_size=128, learning_rate=1e-3, mode="plain"
            ),
            "align": stage(tiny, "projectors/region/.*", steps=100000, batch_size=4, learning_rate=2e-5),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=360000, batch_size=4, learning_rate=1e-5),
        },
        images={"image": square(side, pad_to_square=True), "region": region["recipe"]},
        template=VICUNA_IN_ORDER,
        lengths=(1152, 1536, 2048),
        regions={"region": "image"},
    )
    config["processor"]["items"]["region"] = (0, 1, 2, 4, 8, 16)
    return config
