r"""Video-ChatGPT: a video as means over space and over time (Maaz et al., 2023, arXiv 2306.05424).

    modality encoder    CLIP ViT-L/14 at 224 px on each of 100 frames, frozen
    input projector     the mean of each frame (100 tokens) and of each place (256 tokens), a linear map 1024 -> D
    LLM backbone        Vicuna 1.1 7B, frozen: LLaVA's
    output projector    none: it answers in text
    modality generator  none

One stage: the linear map, from LLaVA's, on 100k questions about videos, thrice:

    mmjax train --config video_chatgpt:7b --workdir runs/video --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/LLaVA-Lightning-7B-v1-1 \
        --config.stages.instruct.data.path=/data/video_chatgpt_100k.json

Trained weights: MBZUAI/Video-ChatGPT-7B (the map as a .bin file).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, grid_of, linear, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, frames, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "Video-ChatGPT",
    "inputs": ("text", "video"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 on 100 frames", "means over space and over time, linear map", "Vicuna 7B"),
    "verified": "356 tokens a video; the means equal to numpy's; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("video_chatgpt", arg, SIZES), arg == "tiny"
    tower, number = tiny_tower(CLIP_L_224, tiny), 5 if tiny else 100
    rows, columns = grid_of(tower)
    pooled = {
        "kind": "spatio_temporal",
        "projector": linear(tower["width"], llm),
        "num_frames": number,
        "frame_features": rows * columns,
    }
    return system(
        "video_chatgpt",
        arg,
        llm,
        encoders={"video": {"kind": "frames", "encoder": tower, "num_frames": number}},
        projectors={"video": pooled},
        stages={"instruct": stage(tiny, PROJECTORS, steps=9375, batch_size=32, learning_rate=2e-5)},
        images={"video": frames(square(tower["image_size"]), number)},
        template=VICUNA,
        lengths=(512, 1024, 2048),
    )
