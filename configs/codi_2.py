r"""CoDi-2: in-context, interleaved, any to any (Tang et al., 2023, arXiv 2311.18775).

    modality encoder    ImageBind's huge towers of images (and videos, frame by frame) and of sound, frozen
    input projector     MLP, 2 layers: one token an item
    LLM backbone        Llama 2 chat 7B (D 4096) with LoRA
    output projector    MLP of the states of 77 and of 8 signal tokens
    modality generator  Stable Diffusion 2.1 (base) and AudioLDM (large), frozen

Words, pictures and sounds stand anywhere in what is asked, examples of what is wanted among them ("A is to B as C is to
..."), and in what is answered, which later turns may refer to and edit. The loss is that of the words, that of the
conditions, and that of the generators themselves, whose gradient reaches the LLM. Two stages here: "align" the maps on
either side with captions, "instruct" with LoRA on in-context generation, composition and editing.

    mmjax train --config codi_2:7b --workdir runs/codi_2 --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Llama-2-7b-chat-hf \
        --config.init.generators.image_out=/models/stable-diffusion-2-1-base \
        --config.init.generators.audio_out=/models/audioldm-l-full \
        --config.processor.images.image_out.captions=/models/stable-diffusion-2-1-base/tokenizer \
        --config.stages.align.data.path=/data/captions.jsonl \
        --config.stages.instruct.data.path=/data/in_context.jsonl

What an assistant shows is what is to be made: {"type": "image", "path": FILE, "caption": TEXT} or "audio" among the
parts of its answer. What a user shows is read: an
edit is a picture or a sound and the words of what shall change.

Not as published: conditions are drawn to what the generator's own text encoder makes of a caption, where the paper
draws them to features of the picture or sound itself; sounds are made by AudioLDM, where it has AudioLDM 2. How many
features an item has, steps, rates and batch sizes are not the paper's: as far as published it does not give them.

Trained weights: none in a layout that is read here.
"""

from configs.generators import (
    AUDIOLDM_L,
    CLAP_TEXT,
    CLIP_H_TEXT,
    SMALL_WIDTH,
    STABLE_DIFFUSION_2_1_BASE,
    small,
    small_text,
    sounds,
    targets,
)
from configs.parts import IMAGEBIND_AUDIO, IMAGEBIND_VISION, LLAMA2_7B, mlp, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, square, system
from configs.templates import drawn, turns

SIZES = {"7b": LLAMA2_7B, "tiny": {**tiny_llm(LLAMA2_7B), "vocab_size": 288}}
ABOUT = {
    "title": "CoDi-2",
    "inputs": ("text", "image", "audio"),
    "outputs": ("text", "image", "audio"),
    "parts": five(
        "ImageBind (huge): images, sound", "MLP, 2 layers, of one vector", "Llama 2 chat with LoRA", "MLP of signals",
        "Stable Diffusion 2.1 (base), AudioLDM",
    ),
    "verified": "shapes and counts; tiny trained through both stages; denoisers and autoencoders equal to diffusers'",
}  # fmt: skip
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"
OUTPUT = "output_projectors/.*"


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("codi_2", arg, SIZES), arg == "tiny"
    vision, audio = tiny_tower(IMAGEBIND_VISION, tiny), tiny_tower(IMAGEBIND_AUDIO, tiny)
    to_llm = mlp(vision.get("embed_width", 1024), llm)
    generators = {"image_out": small(STABLE_DIFFUSION_2_1_BASE, tiny), "audio_out": small(AUDIOLDM_L, tiny)}
    texts = {"image_out": small_text(CLIP_H_TEXT, tiny), "audio_out": small_text(CLAP_TEXT, tiny)}
    # As many tokens as Stable Diffusion reads of a text; AudioLDM reads one vector.
    counts = {"image_out": 12, "audio_out": 2} if tiny else {"image_out": 77, "audio_out": 8}
    names, widths = {"image_out": "IMG", "audio_out": "AUD"}, {"image_out": 1024, "audio_out": 512}
    signals = {
        port: tuple(f"[{names[port]}{number}]" for number in range(count)) for port, count in counts.items()
    }
    outputs = {
        port: {
            "kind": "mlp_output", "in_width": llm["width"], "hidden": 24 if tiny else llm["width"],
            "width": SMALL_WIDTH if tiny else width, "activation": "gelu",
            "pooled": "mean" if port == "audio_out" else "none",
        }
        for port, width in widths.items()
    }  # fmt: skip
    sizes = {port: generator.get("size", (8, 8) if tiny else (512, 512)) for port, generator in generators.items()}
    both = {"text": 1.0, "diffusion": 1.0, "alignment": 1.0, "drop": 0.1}
    out = system(
        "codi_2",
        arg,
        llm,
        encoders={"image": vision, "audio": audio},
        projectors={"image": to_llm, "audio": to_llm},
        stages={
            "align": stage(
                tiny, PROJECTORS, NEW_ROWS, OUTPUT, steps=20000, batch_size=128, learning_rate=4e-4,
                loss_weights={**both, "diffusion": 0.0},
            ),
            "instruct": stage(
                tiny, PROJECTORS, NEW_ROWS, OUTPUT, LORA, steps=50000, batch_size=64, learning_rate=1e-4,
                lora=lora(32, 32.0), loss_weights=both,
            ),
        },
        images={
            "image": square(vision["clip_shape"][1]),
            "image_out": targets("ImageTargets", sizes["image_out"], captions=None),
            "audio_out": sounds(sizes["audio_out"]),
        },
        template=turns("[INST]", "[/INST]", item=drawn(signals), in_order=True),
        lengths=(128, 256, 512, 1024, 2048),
        new_rows=True,
        generators=generators,
        output_projectors=outputs,
        signals=signals,
        generator_encoders=texts,
    )  # fmt: skip
    # Examples in the prompt.
    out["processor"]["items"] |= {"image": (0, 1, 2, 4), "audio": (0, 1, 2, 4)}
    return out
