r"""Uni-MoE: experts trained on one modality each, then mixed by a sparse router (Li et al., 2024, arXiv 2405.11273).

    modality encoder    CLIP ViT-L/14-336 for images and for 8 frames of a video, AST for sounds, Whisper for speech;
                        all frozen
    input projector     images: MLP; frames, sounds and speech: a Q-Former each, 32 tokens
    LLM backbone        Vicuna 7B, frozen; every MLP has four experts, each the text's own with low-rank paths
    output projector    none: it answers in text
    modality generator  none

Stage 1 trains the projectors. Stage 2 sends every row to the experts of the modalities that it has, so that each learns
its own; stage 3 lets a router send every token to two of them, and adapts the attention with LoRA. The paper's sound
encoder is BEATs, for which AST stands; an expert there is a copy of the MLP that was adapted with LoRA, which is what
the MLP with low-rank paths is. Steps, rates, the rank and the weight of the router's balancing loss are this project's.

    mmjax train --config uni_moe:7b --workdir runs/uni_moe --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.init.encoders.speech=/models/whisper-small \
        --config.stages.align.data.path=/data/pairs.jsonl --config.stages.experts.data.path=/data/each.jsonl \
        --config.stages.mix.data.path=/data/mixed.jsonl
"""

from configs.parts import AST_BASE, CLIP_L_336, LLAMA2_7B, WHISPER_SMALL, mlp, qformer, tiny_llm, tiny_tower
from configs.stages import FUSION, LORA, PROJECTORS, lora, stage
from configs.system import choose, five, frames, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "Uni-MoE",
    "inputs": ("text", "image", "video", "audio"),
    "outputs": ("text",),
    "parts": five(
        "CLIP ViT-L/14 at 336 px (images, 8 frames), AST (sounds), Whisper (speech)",
        "MLP (images), Q-Formers",
        "Vicuna with low-rank modality experts",
    ),
    "verified": "equal to a second implementation in both routings; the router's balancing loss equal to that of "
    "transformers' Mixtral; the text model at first; tiny trained",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("uni_moe", arg, SIZES), arg == "tiny"
    tower, ast, whisper = (tiny_tower(part, tiny) for part in (CLIP_L_336, AST_BASE, WHISPER_SMALL))
    number, rank = 2 if tiny else 8, 4 if tiny else 64
    sound = {
        "feature_extractor_type": "ASTFeatureExtractor",
        "max_length": ast["num_frames"],
        "num_mel_bins": ast["num_mels"],
    }
    speech = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": whisper["num_mels"]}
    settings = {"batch_size": 128, "weight_decay": 0.0}
    return system(
        "uni_moe",
        arg,
        {**llm, "fusion": {"kind": "modality_experts", "num_experts": 4, "rank": rank, "alpha": 2.0 * rank}},
        encoders={
            "image": tower,
            "video": {"kind": "frames", "encoder": tower, "num_frames": number},
            "audio": ast,
            "speech": whisper,
        },
        projectors={
            "image": mlp(tower["width"], llm),
            "video": qformer(tower, llm, tiny),
            "audio": qformer(ast, llm, tiny),
            "speech": qformer(whisper, llm, tiny),
        },
        stages={
            "align": stage(tiny, PROJECTORS, steps=10000, learning_rate=1e-3, mode="plain", **settings),
            "experts": stage(
                tiny, PROJECTORS, "backbone/fusion/blocks/(gate|up|down)/.*", steps=20000, learning_rate=2e-4,
                fusion={"routing": "modality"}, **settings,
            ),
            "mix": stage(
                tiny, PROJECTORS, FUSION, LORA, steps=20000, learning_rate=1e-4, lora=lora(rank, 2.0 * rank),
                router_weight=0.01, **settings,
            ),
        },
        # A tiny Whisper takes a quarter of a second, which no recipe gives: it takes spectrograms as they are.
        images={
            "image": square(tower["image_size"]),
            "video": frames(square(tower["image_size"]), number),
            "audio": sound,
            **({} if tiny else {"speech": speech}),
        },
        template=VICUNA,
        lengths=(256, 512, 1024, 2048),
    )  # fmt: skip
