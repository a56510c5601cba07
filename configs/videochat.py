r"""VideoChat: a conversation about a video, frame by frame through BLIP-2's parts (Li et al., 2023, arXiv 2305.06355).

    modality encoder    EVA-CLIP ViT-g/14 on images and on 8 frames of a video, frozen
    input projector     BLIP-2's Q-Former, 32 queries a frame, and a linear map 768 -> D
    LLM backbone        StableVicuna 13B, frozen
    output projector    none: it answers in text
    modality generator  none

The paper adds attention over time to the tower and 64 queries to the Q-Former, which are trained with the linear map;
here the tower sees frames alone, and stage 1 trains Q-Former and map. Stage 2 trains the same on 18k instructions about
images and videos, with one Q-Former for both ports; each port has a copy of the frozen tower. Epochs are published,
rates as far as published. VideoChat-Text, its sibling without training, tells a video in words by expert models and
asks the LLM alone; that is a prompt and no config.

    mmjax train --config videochat:13b --workdir runs/videochat --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/stable-vicuna-13b \
        --config.stages.align.data.path=/data/webvid_10m_and_images_15m.jsonl \
        --config.stages.instruct.data.path=/data/videochat_18k.json

Trained weights: OpenGVLab/videochat (in a format of their own, which is not read).
"""

from configs.parts import EVA_G_224, LLAMA_7B, LLAMA_13B, qformer, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, frames, squeezed, system
from configs.templates import HUMAN

SIZES = {"13b": LLAMA_13B, "7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "VideoChat",
    "inputs": ("text", "image", "video"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 on images and 8 frames", "Q-Former of each frame, linear map", "StableVicuna"),
    "verified": "shapes and counts of every size; tiny trained",
}


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("videochat", arg, SIZES), arg == "tiny"
    tower, number = tiny_tower(EVA_G_224, tiny), 2 if tiny else 8
    recipe = squeezed(tower["image_size"])
    projector = qformer(tower, llm, tiny)
    return system(
        "videochat",
        arg,
        llm,
        encoders={"image": tower, "video": {"kind": "frames", "encoder": tower, "num_frames": number}},
        projectors={"image": projector, "video": projector},
        stages={
            "align": stage(tiny, PROJECTORS, steps=100000, batch_size=256, learning_rate=1e-4, mode="plain"),
            "instruct": stage(tiny, PROJECTORS, steps=1700, batch_size=32, learning_rate=2e-5),
        },
        images={"image": recipe, "video": frames({**recipe, "do_center_crop": False}, number)},
        template=HUMAN,
        lengths=(128, 384, 512, 1024),
        shared_projectors={"video": "image"},
    )
