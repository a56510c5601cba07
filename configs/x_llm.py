r"""X-LLM: modalities as foreign languages (Chen et al., 2023, arXiv 2305.04160).

    modality encoder    EVA-CLIP ViT-g/14 for images and for 8 frames of a video; a speech encoder; all frozen
    input projector     images and frames: BLIP-2's Q-Former and a map; speech: C-Former, continuous
                        integrate-and-fire over the frames, so that a token is about as long as a word
    LLM backbone        ChatGLM 6B, frozen
    output projector    none: it answers in text
    modality generator  none

The paper's speech encoder is a conformer trained for recognition; Whisper's stands for it. ChatGLM's positions have
two axes and its prompt is seen both ways; here positions have one axis and the prompt is causal. Stage 1 trains each
interface on its own pairs, stage 2 the maps on 10k instructions of all modalities; step counts are this project's.

    mmjax train --config x_llm:6b --workdir runs/x_llm --config.mesh.fsdp=-1 \
        --config.init.encoders.audio=/models/whisper-small \
        --config.stages.align.data.path=/data/pairs.jsonl --config.stages.instruct.data.path=/data/instruct.jsonl
"""

from configs.parts import CHATGLM_6B, EVA_G_224, WHISPER_SMALL, qformer, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, frames, squeezed, system
from configs.templates import QUESTION

SIZES = {"6b": CHATGLM_6B, "tiny": tiny_llm(CHATGLM_6B)}
ABOUT = {
    "title": "X-LLM",
    "inputs": ("text", "image", "video", "audio"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14 (images, frames), Whisper (speech)", "Q-Former; C-Former with CIF", "ChatGLM 6B"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "6b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("x_llm", arg, SIZES), arg == "tiny"
    tower, speech = tiny_tower(EVA_G_224, tiny), tiny_tower(WHISPER_SMALL, tiny)
    number, recipe = 2 if tiny else 8, squeezed(tower["image_size"])
    former = {
        "kind": "cif",
        "in_width": speech["width"],
        "width": llm["width"],
        "max_tokens": 5 if tiny else 128,
        "num_layers": 2 if tiny else 12,
        "num_heads": 4 if tiny else 12,
        "num_features": speech["max_positions"],
    }
    sound = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": speech["num_mels"]}
    return system(
        "x_llm",
        arg,
        llm,
        encoders={"image": tower, "video": {"kind": "frames", "encoder": tower, "num_frames": number}, "audio": speech},
        projectors={"image": qformer(tower, llm, tiny), "video": qformer(tower, llm, tiny), "audio": former},
        stages={
            "align": stage(tiny, PROJECTORS, steps=100000, batch_size=256, learning_rate=1e-4, mode="plain"),
            "instruct": stage(
                tiny, "projectors/(image|video)/out/.*", "projectors/audio/.*",
                steps=1000, batch_size=64, learning_rate=3e-5,
            ),
        },
        # A tiny Whisper takes a quarter of a second, which no recipe gives: it takes spectrograms as they are.
        images={
            "image": recipe,
            "video": frames({**recipe, "do_center_crop": False}, number),
            **({} if tiny else {"audio": sound}),
        },
        template=QUESTION,
        lengths=(128, 256, 512, 1024),
    )  # fmt: skip
