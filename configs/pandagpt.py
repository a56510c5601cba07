r"""PandaGPT: one vector of ImageBind is one token (Su et al., 2023, arXiv 2305.16355).

    modality encoder    ImageBind's huge towers of images and of sound, frozen: one vector of 1024 channels an item
    input projector     a linear map 1024 -> D: one token an item
    LLM backbone        Vicuna, 7B (D 4096) or 13B (D 5120), with LoRA of rank 32
    output projector    none: it answers in text
    modality generator  none

It is trained on pairs of image and text alone (160k of LLaVA and MiniGPT-4, twice); sound works because ImageBind has
put it into the same space. In the paper one map serves all towers. Here each port has a map of its own, so copy
projectors/image to projectors/audio after training. The port "audio" takes ImageBind's spectrograms as float arrays
[3 clips, 204 frames, 128 bands].

    mmjax train --config pandagpt:13b --workdir runs/panda --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-13b-v0 \
        --config.stages.instruct.data.path=/data/pandagpt4_visual_instruction.json

Trained weights: openllmplayground/pandagpt_13b_max_len_400 and others (map and LoRA).
"""

from configs.parts import IMAGEBIND_AUDIO, IMAGEBIND_VISION, LLAMA_7B, LLAMA_13B, linear, tiny_llm, tiny_tower
from configs.stages import LORA, lora, stage
from configs.system import choose, five, square, system
from configs.templates import HUMAN

SIZES = {"13b": LLAMA_13B, "7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "PandaGPT",
    "inputs": ("text", "image", "audio"),
    "outputs": ("text",),
    "parts": five("ImageBind (huge): images, sound", "linear map of one vector", "Vicuna with LoRA"),
    "verified": "1 token an item; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("pandagpt", arg, SIZES), arg == "tiny"
    vision, audio = tiny_tower(IMAGEBIND_VISION, tiny), tiny_tower(IMAGEBIND_AUDIO, tiny)
    # The maps alone and the adapters; 160k pairs, twice.
    trained = ("projectors/image/.*", LORA)
    adapters = lora(32, 32.0)
    return system(
        "pandagpt",
        arg,
        llm,
        encoders={"image": vision, "audio": audio},
        projectors=dict.fromkeys(("image", "audio"), linear(vision.get("embed_width", 1024), llm)),
        stages={
            "instruct": stage(tiny, *trained, steps=5000, batch_size=64, learning_rate=5e-4, lora=adapters),
        },
        images={"image": square(vision["clip_shape"][1])},
        template=HUMAN,
        lengths=(128, 256, 512),
    )
