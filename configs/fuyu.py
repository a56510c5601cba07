r"""Fuyu: no tower at all, patches of pixels go straight into the LLM (Bavishi et al., 2023, adept.ai/blog/fuyu-8b).

    modality encoder    none: patches of 30 x 30 pixels of images of any shape up to 1080 x 1920
    input projector     a linear map 2700 -> D
    LLM backbone        Persimmon 8B
    output projector    none: it answers in text
    modality generator  none

Its training is not published: one stage that trains everything, with this project's numbers. A released checkpoint ends
each line of patches with the token |NEWLINE|; start from one to have it so:

    mmjax train --config fuyu:8b --workdir runs/fuyu --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/fuyu-8b --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: adept/fuyu-8b.
"""

from configs.parts import linear, tiny_llm
from configs.rare_parts import PERSIMMON_8B
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, system
from configs.templates import BARE, PLAIN

SIZES = {"8b": PERSIMMON_8B, "tiny": tiny_llm(PERSIMMON_8B)}
ABOUT = {
    "title": "Fuyu",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("none: patches of 30 x 30 pixels", "linear map", "Persimmon 8B"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained",
}


def get_config(arg: str = "8b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("fuyu", arg, SIZES), arg == "tiny"
    size = {"height": 60, "width": 90} if tiny else {"height": 1080, "width": 1920}
    return system(
        "fuyu",
        arg,
        llm,
        encoders={"image": {"kind": "raw_patches", "patch_size": 30}},
        projectors={"image": linear(2700, llm)},
        stages={"instruct": stage(tiny, PROJECTORS, LLM, steps=10000, batch_size=128, learning_rate=1e-5)},
        images={"image": {"image_processor_type": "FuyuImageProcessor", "size": size}},
        template=PLAIN.replace(BARE, "'|SPEAKER|'"),
        lengths=(512, 1024, 2048, 4096),
        media_tokens={"image": ("|SPEAKER|", 71011)},
    )
