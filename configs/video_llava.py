r"""Video-LLaVA: images and videos aligned before they are projected (Lin et al., 2023, arXiv 2311.10122).

    modality encoder    LanguageBind's image tower and its video tower on 8 frames, both ViT-L/14 at 224 px, frozen
    input projector     MLP 1024 -> D -> D, one for each port
    LLM backbone        Vicuna 1.5 7B
    output projector    none: it answers in text
    modality generator  none

What differs from the paper: there one MLP serves both ports, and LanguageBind's video tower attends over time
between its layers; here (as in transformers) it sees each frame by itself.

    mmjax train --config video_llava:7b --workdir runs/video_llava --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.stages.pretrain.data.path=/data/captions_1m.json \
        --config.stages.finetune.data.path=/data/mixed_765k.json

Trained weights: LanguageBind/Video-LLaVA-7B-hf.
"""

from configs.parts import CLIP_L_224, LLAMA2_7B, mlp, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, frames, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "Video-LLaVA",
    "inputs": ("text", "image", "video"),
    "outputs": ("text",),
    "parts": five("LanguageBind ViT-L/14 for images, and for 8 frames", "MLP, 2 layers", "Vicuna 1.5 7B"),
    "verified": "256 tokens an image and 2056 a video; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("video_llava", arg, SIZES), arg == "tiny"
    tower, number = tiny_tower(CLIP_L_224, tiny), 3 if tiny else 8
    # Frames keep the class token.
    video = {"kind": "frames", "encoder": {**tower, "feature_strategy": "full"}, "num_frames": number}
    recipe = square(tower["image_size"])
    return system(
        "video_llava",
        arg,
        llm,
        encoders={"image": tower, "video": video},
        projectors=dict.fromkeys(("image", "video"), mlp(tower["width"], llm)),
        stages={
            "pretrain": stage(tiny, PROJECTORS, steps=4922, batch_size=256, learning_rate=1e-3, mode="plain"),
            "finetune": stage(tiny, PROJECTORS, LLM, steps=5976, batch_size=128, learning_rate=2e-5),
        },
        images={"image": recipe, "video": frames(recipe, number)},
        template=VICUNA,
        lengths=(512, 1024, 2304, 3072),
    )
