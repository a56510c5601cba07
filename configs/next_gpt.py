r"""NExT-GPT: any to any through one LLM and three diffusion generators (Wu et al., 2024, arXiv 2309.05519).

    modality encoder    ImageBind's huge towers of images (and videos, frame by frame) and of sound, frozen
    input projector     a linear map 1024 -> D: one token an item
    LLM backbone        Vicuna 7B (D 4096) with LoRA of rank 32; rows of the signal tokens trained
    output projector    one small transformer of learned queries for each generator, on 4, 24 and 8 signal tokens
    modality generator  Stable Diffusion 1.5, Zeroscope v2, AudioLDM (large), all frozen

Three stages. "encode" teaches the maps before the LLM on captions. "decode" teaches the signals' rows and the output
projectors: the LLM is given captions and has to write the signal, whose condition is drawn to what the generator's own
text encoder makes of the caption, and to what the generator needs to make the picture. "instruct" adds LoRA, on
modality-switching instructions.

    mmjax train --config next_gpt:7b --workdir runs/next_gpt --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v0 \
        --config.init.generators.image_out=/models/stable-diffusion-v1-5 \
        --config.init.generators.video_out=/models/zeroscope_v2_576w \
        --config.init.generators.audio_out=/models/audioldm-l-full \
        --config.stages.encode.data.path=/data/captions.jsonl \
        --config.stages.decode.data.path=/data/drawn_captions.jsonl \
        --config.stages.instruct.data.path=/data/modality_switching.jsonl

What an assistant shows is what is to be made: {"type": "image", "path": FILE}, "video" or "audio" among the parts of
its answer. Conditions are aligned with captions, {"type": "image", "path": FILE, "caption": TEXT}, once
--config.processor.images.image_out.captions names the directory of the generator's tokenizer (video_out likewise).
The published code adds the embeddings of the
signal's tokens to their hidden states before it maps them; so does this. Learning rates and batch sizes are those of
the paper's appendix as far as it gives them.

Trained weights: ChocoWu/nextgpt_7b_tiva_v0 (deltas).
"""

from configs.generators import (
    AUDIOLDM_L,
    CLAP_TEXT,
    CLIP_H_TEXT,
    CLIP_L_TEXT,
    STABLE_DIFFUSION_1_5,
    ZEROSCOPE,
    queries,
    small,
    small_text,
    sounds,
    targets,
)
from configs.parts import IMAGEBIND_AUDIO, IMAGEBIND_VISION, LLAMA_7B, linear, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, square, system
from configs.templates import drawn, turns

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "NExT-GPT",
    "inputs": ("text", "image", "audio"),
    "outputs": ("text", "image", "video", "audio"),
    "parts": five(
        "ImageBind (huge): images, sound",
        "linear map of one vector",
        "Vicuna with LoRA",
        "learned queries (small transformer)",
        "Stable Diffusion 1.5, Zeroscope v2, AudioLDM",
    ),
    "verified": "shapes and counts; tiny trained through its three stages; output projector equal to torch's, "
    "denoisers and autoencoders to diffusers'",
}
# How many signal tokens each generator has.
SIGNALS = {"image_out": ("IMG", 4), "video_out": ("VID", 24), "audio_out": ("AUD", 8)}
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("next_gpt", arg, SIZES), arg == "tiny"
    vision, audio = tiny_tower(IMAGEBIND_VISION, tiny), tiny_tower(IMAGEBIND_AUDIO, tiny)
    to_llm = linear(vision.get("embed_width", 1024), llm)
    generators = {
        port: small(generator, tiny)
        for port, generator in zip(SIGNALS, (STABLE_DIFFUSION_1_5, ZEROSCOPE, AUDIOLDM_L), strict=True)
    }
    texts = zip(SIGNALS, (CLIP_L_TEXT, CLIP_H_TEXT, CLAP_TEXT), strict=True)
    texts = {port: small_text(text, tiny) for port, text in texts}
    # AudioLDM reads one vector of a text.
    reads = {"image_out": {"num_queries": 77}, "video_out": {"num_queries": 77}}
    reads["audio_out"] = {"num_queries": 1, "pooled": "mean"}
    outputs = {port: queries(llm, generator, tiny=tiny, **reads[port]) for port, generator in generators.items()}
    signals = {
        port: tuple(f"[{name}{number}]" for number in range(2 if tiny else count))
        for port, (name, count) in SIGNALS.items()
    }
    sizes = {port: generator.get("size", (8, 8) if tiny else (512, 512)) for port, generator in generators.items()}
    common = {"batch_size": 18, "learning_rate": 4e-4, "weight_decay": 1e-3}
    return system(
        "next_gpt",
        arg,
        llm,
        encoders={"image": vision, "audio": audio},
        projectors={"image": to_llm, "audio": to_llm},
        stages={
            "encode": stage(tiny, PROJECTORS, steps=30000, mode="plain", **common),
            "decode": stage(
                tiny, NEW_ROWS, "output_projectors/.*", steps=30000, **{**common, "batch_size": 8},
                loss_weights={"text": 1.0, "diffusion": 1.0, "alignment": 1.0, "drop": 0.1},
            ),
            "instruct": stage(
                tiny, PROJECTORS, NEW_ROWS, LORA, "output_projectors/.*", steps=30000, **{**common, "batch_size": 4},
                lora=lora(32, 32.0), loss_weights={"text": 1.0, "diffusion": 1.0, "alignment": 1.0, "drop": 0.1},
            ),
        },  # fmt: skip
        images={
            "image": square(vision["clip_shape"][1]),
            "image_out": targets("ImageTargets", sizes["image_out"]),
            "video_out": targets("VideoTargets", sizes["video_out"], frames=generators["video_out"]["frames"]),
            "audio_out": sounds(sizes["audio_out"]),
        },
        template=turns("### Human:", "### Assistant:", item=drawn(signals), in_order=True),
        lengths=(128, 256, 512),
        new_rows=True,
        generators=generators,
        output_projectors=outputs,
        signals=signals,
        generator_encoders=texts,
    )
