r"""Video-LLaMA: a Q-Former over the Q-Formers of frames (Zhang et al., 2023, arXiv 2306.02858).

    modality encoder    EVA-CLIP ViT-g/14 on 8 frames; ImageBind's tower of sound on 8 clips, one vector a clip; frozen
    input projector     video: BLIP-2's Q-Former on each frame (frozen in the paper), positions of frames, a Q-Former of
                        two layers over all of them, a linear map: 32 tokens. Sound: positions of clips, a Q-Former of
                        two layers, a linear map: 8 tokens
    LLM backbone        Vicuna or Llama 2 chat, 7B or 13B, frozen
    output projector    none: it answers in text
    modality generator  none

As in the paper the branch of sound is trained on pictures' or videos' pairs with text, ImageBind's space being one for
all: so a stage may train either port alone. Epochs are published; step counts are as far as published.

    mmjax train --config video_llama:7b --workdir runs/video_llama --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Llama-2-7b-chat-hf \
        --config.stages.align.data.path=/data/webvid_2m_cc595k.jsonl \
        --config.stages.instruct.data.path=/data/videochat_llava_minigpt4.jsonl

Trained weights: DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned (in a format of their own, which is not read).
"""

from configs.parts import EVA_G_224, IMAGEBIND_AUDIO, LLAMA2_7B, LLAMA2_13B, num_features, tiny_llm, tiny_tower
from configs.stages import stage
from configs.system import choose, five, frames, squeezed, system
from configs.templates import LLAMA_2

SIZES = {"7b": LLAMA2_7B, "13b": LLAMA2_13B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "Video-LLaMA",
    "inputs": ("text", "video", "audio"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 on 8 frames; ImageBind (sound)", "Q-Formers of frames and videos", "Llama 2"),
    "verified": "the Q-Former over frames equal to a slow one; 32 tokens a video, 8 a sound; tiny trained, with what "
    "is frozen unchanged",
}
# All of the projector of videos but the Q-Former of a frame, which comes from BLIP-2.
OVER_TIME = "projectors/video/(?!frame).*"


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("video_llama", arg, SIZES), arg == "tiny"
    tower, number = tiny_tower(EVA_G_224, tiny), 3 if tiny else 8
    sound = {**tiny_tower(IMAGEBIND_AUDIO, tiny), "clips": number, "feature_strategy": "pooled"}
    sizes = {"num_queries": 4, "query_width": 48, "num_heads": 4, "mlp_width": 96} if tiny else {}
    query_width, embed_width = sizes.get("query_width", 768), sound.get("embed_width", 1024)
    frame = {
        **sizes, "kind": "qformer", "in_width": tower["width"], "width": query_width,
        "num_features": num_features(tower), "num_layers": 2 if tiny else 12,
    }  # fmt: skip
    over = {"kind": "qformer", "width": llm["width"], "cross_attention_frequency": 1, "num_layers": 2, **sizes}
    video = {
        "kind": "video_qformer",
        "frame": frame,
        "video": {**over, "in_width": query_width},
        "num_frames": number,
    }
    clips = {
        "kind": "video_qformer",
        "video": {**over, "in_width": embed_width, "num_queries": 2 if tiny else 8},
        "num_frames": number,
    }
    recipe = squeezed(tower["image_size"], do_center_crop=False)
    both = (OVER_TIME, "projectors/audio/.*")
    return system(
        "video_llama",
        arg,
        llm,
        encoders={"video": {"kind": "frames", "encoder": tower, "num_frames": number}, "audio": sound},
        projectors={"video": video, "audio": clips},
        stages={
            "align": stage(tiny, *both, steps=12500, batch_size=256, learning_rate=1e-4, mode="plain"),
            "instruct": stage(tiny, *both, steps=7500, batch_size=32, learning_rate=3e-5),
        },
        images={"video": frames(recipe, number)},
        template=LLAMA_2,
        lengths=(128, 256, 512, 1024),
    )
