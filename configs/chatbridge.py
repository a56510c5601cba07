r"""ChatBridge: language as the bridge between modalities (Zhao et al., 2023, arXiv 2305.16103).

    modality encoder    EVA-CLIP ViT-g/14 for images and for 4 frames of a video; AST for sound; all frozen
    input projector     a Perceiver of 32 latents for each modality
    LLM backbone        Vicuna 13B, frozen
    output projector    none: it answers in text
    modality generator  none

The paper's sound encoder is BEATs, a transformer of the same sizes over patches of a spectrogram; AST stands for it.
Its step counts are not published; those below are this project's. Stage 1 takes pairs of each modality with text,
stage 2 their instructions, whose prompts ask for short or brief answers:

    mmjax train --config chatbridge:13b --workdir runs/chatbridge --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-13b \
        --config.init.encoders.audio=/models/ast-finetuned-audioset-10-10-0.4593 \
        --config.stages.align.data.path=/data/pairs.jsonl --config.stages.instruct.data.path=/data/multis.jsonl
"""

from configs.parts import AST_BASE, EVA_G_224, LLAMA_7B, LLAMA_13B, num_features, perceiver, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, frames, squeezed, system
from configs.templates import VICUNA

SIZES = {"13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "ChatBridge",
    "inputs": ("text", "image", "video", "audio"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 (images, 4 frames), AST (sound)", "a Perceiver for each", "Vicuna 13B"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("chatbridge", arg, SIZES), arg == "tiny"
    tower, ast = tiny_tower(EVA_G_224, tiny), tiny_tower(AST_BASE, tiny)
    number, each = 4, num_features(tower)
    recipe = squeezed(tower["image_size"])
    seen = perceiver(tower, llm, tiny, num_latents=32)
    settings = {"batch_size": 256, "learning_rate": 1e-4, "weight_decay": 0.05}
    sound = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "max_length": ast["num_frames"],
        "num_mel_bins": ast["num_mels"],
    }
    return system(
        "chatbridge",
        arg,
        llm,
        encoders={"image": tower, "video": {"kind": "frames", "encoder": tower, "num_frames": number}, "audio": ast},
        projectors={
            "image": seen,
            "video": {**seen, "num_features": number * each, "max_frames": number, "frame_features": each},
            "audio": perceiver(ast, llm, tiny, num_latents=32),
        },
        stages={
            "align": stage(tiny, PROJECTORS, steps=150000, mode="plain", **settings),
            "instruct": stage(tiny, PROJECTORS, steps=10000, **settings),
        },
        images={"image": recipe, "video": frames({**recipe, "do_center_crop": False}, number), "audio": sound},
        template=VICUNA,
        lengths=(128, 256, 512, 1024),
    )
