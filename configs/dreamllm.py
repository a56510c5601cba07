r"""DreamLLM: an LLM whose dream queries condition Stable Diffusion (Dong et al., 2024, arXiv 2309.11499).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: 256 patches
    input projector     a linear map 1024 -> D
    LLM backbone        Vicuna 7B (D 4096)
    output projector    a linear map D -> 1024 of each of 64 dream queries
    modality generator  Stable Diffusion 2.1 (base), frozen

An image to make stands in the text as <dream> and 64 queries, whose embeddings are rows of the vocabulary and learned.
What the LLM makes of them is the generator's condition, and the generator's own loss is all that says what it should
be: nothing is aligned with a text encoder. Three stages: "align" the maps and the queries, "interleave" on documents of
text and images with the LLM trained too, "instruct" on instructions.

    mmjax train --config dreamllm:7b --workdir runs/dreamllm --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.init.generators.image_out=/models/stable-diffusion-2-1-base \
        --config.stages.align.data.path=/data/pairs.jsonl \
        --config.stages.interleave.data.path=/data/mmc4.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

What an assistant shows is what is to be made ({"type": "image", "path": FILE} among the parts of its answer); words
must follow it. As published the queries are no words that the LLM has to say: it says <dream> alone. Here they are
tokens that follow <dream> by themselves, whose share of the text's loss is soon nothing. Steps, batch sizes and rates
are those of the paper as far as it gives them.

Trained weights: RunpeiDong/DreamLLM (7B).
"""

from configs.generators import CLIP_H_TEXT, STABLE_DIFFUSION_2_1_BASE, small, targets
from configs.parts import CLIP_L_224, LLAMA_7B, linear, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA_SYSTEM, drawn, turns

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "DreamLLM",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "CLIP ViT-L/14 at 224 px", "linear map", "Vicuna", "linear map of 64 dream queries", "Stable Diffusion 2.1 base"
    ),
    "verified": "shapes and counts; tiny trained through its three stages; UNet and autoencoder equal to diffusers'",
}
QUERIES = 64


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("dreamllm", arg, SIZES), arg == "tiny"
    tower, generator = tiny_tower(CLIP_L_224, tiny), small(STABLE_DIFFUSION_2_1_BASE, tiny)
    signal = ("<dream>", *(f"<dream{number}>" for number in range(3 if tiny else QUERIES)))
    signals = {"image_out": signal}
    rows, output = "backbone/(embed_new|lm_head_new)/.*", "output_projectors/.*"
    drawing = {"loss_weights": {"text": 1.0, "diffusion": 10.0, "drop": 0.1}}
    return system(
        "dreamllm",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages={
            "align": stage(
                tiny, PROJECTORS, rows, output, steps=15000, batch_size=1024, learning_rate=2e-3, **drawing
            ),
            "interleave": stage(
                tiny, PROJECTORS, LLM, output, steps=40000, batch_size=512, learning_rate=2e-5, **drawing
            ),
            "instruct": stage(
                tiny, PROJECTORS, LLM, output, steps=5000, batch_size=128, learning_rate=4e-5, **drawing
            ),
        },
        images={
            "image": square(tower["image_size"]),
            "image_out": targets("ImageTargets", (8, 8) if tiny else (512, 512)),
        },
        template=turns("USER:", "ASSISTANT:", VICUNA_SYSTEM, item=drawn(signals), in_order=True),
        lengths=(384, 768, 2048),
        new_rows=True,
        generators={"image_out": generator},
        output_projectors={
            "image_out": {
                "kind": "linear_output", "in_width": llm["width"], "width": 16 if tiny else CLIP_H_TEXT["width"],
            }
        },
        signals=signals,
    )  # fmt: skip
