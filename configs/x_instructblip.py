r"""X-InstructBLIP: a Q-Former of its own for every modality, each reading the instruction (Panagopoulou et al., 2023,
arXiv 2311.18799).

    modality encoder    EVA-CLIP ViT-g/14 for images and 5 frames of a video; AST for sound; ULIP-2's Point-BERT for
                        points; all frozen
    input projector     for each a Q-Former of 32 queries that reads the instruction, and a linear map 768 -> D
    LLM backbone        Vicuna 1.1, 7B or 13B, frozen
    output projector    none: it answers in text
    modality generator  none

Modalities are trained apart, the LLM never; together they work because each speaks the LLM's language. What an item is
stands before it in words ("Image: ", "Audio: "), which the paper finds to matter: see the template. Its sound encoder
is BEATs, for which AST stands here, which has the same sizes. A cloud of points is a part of a message,
`{"type": "points", "path": "chair.ply"}`; one without colours is grey. Learning rate and warm-up are InstructBLIP's,
steps as far as published.

    mmjax train --config x_instructblip:vicuna_7b --workdir runs/x_instructblip --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 --config.processor.reader=/models/bert-base-uncased \
        --config.stages.image.data.path=/data/images.jsonl \
        --config.stages.video.data.path=/data/videos.jsonl --config.stages.audio.data.path=/data/sounds.jsonl

Trained weights: LAVIS's x_instructblip (.pth files for each modality, which are not read).
"""

from configs.parts import AST_BASE, EVA_G_224, LLAMA_7B, LLAMA_13B, num_features, qformer, tiny_llm, tiny_tower
from configs.rare_parts import TINY_POINTS, ULIP_2
from configs.stages import stage
from configs.system import choose, five, frames, squeezed, system
from configs.templates import cued

SIZES = {"vicuna_7b": LLAMA_7B, "vicuna_13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "X-InstructBLIP",
    "inputs": ("text", "image", "video", "audio", "points"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP, AST, Point-BERT", "a Q-Former for each that reads the instruction", "Vicuna"),
    "verified": "shapes and counts of every size; the words before an item; tiny trained",
}
CUES = {"image": "Image: ", "video": "Video: ", "audio": "Audio: ", "points": "3D Model: "}


def get_config(arg: str = "vicuna_7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("x_instructblip", arg, SIZES), arg == "tiny"
    tower, sound = tiny_tower(EVA_G_224, tiny), tiny_tower(AST_BASE, tiny)
    number, points = 2 if tiny else 5, TINY_POINTS if tiny else ULIP_2
    words = {"vocab_size": 272 if tiny else 30523}
    seen = qformer(tower, llm, tiny, **words)
    former = lambda part, features: {**seen, "in_width": part["width"], "num_features": features}
    ear = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "max_length": sound["num_frames"],
        "num_mel_bins": sound["num_mels"],
    }
    recipe = squeezed(tower["image_size"])
    settings = {"steps": 60000, "batch_size": 64, "learning_rate": 1e-5, "weight_decay": 0.05, "warmup": 1000 / 60000}
    ports = ("image", "video", "audio", "points")
    config = system(
        "x_instructblip",
        arg,
        llm,
        encoders={
            "image": tower,
            "video": {"kind": "frames", "encoder": tower, "num_frames": number},
            "audio": sound,
            "points": points,
        },
        projectors={
            "image": seen,
            "video": seen,
            "audio": former(sound, num_features(sound)),
            "points": former(points, points["num_groups"] + 1),
        },
        stages={port: stage(tiny, f"projectors/{port}/.*", **settings) for port in ports},
        images={
            "image": recipe,
            "video": frames({**recipe, "do_center_crop": False}, number),
            "audio": ear,
            "points": {
                "point_processor_type": "PointProcessor",
                "num_points": points["num_points"],
                "features": ("rgb",),
                "fill": 0.4,
            },
        },
        template=cued(CUES),
        lengths=(128, 256, 512),
    )
    # The words that the Q-Former reads are not the LLM's but BERT's.
    config["processor"]["reader"] = "bytes" if tiny else None
    return config
