r"""KOSMOS-G: images from prompts of words and images (Pan et al., 2024, arXiv 2310.02992).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen
    input projector     KOSMOS-1's Perceiver of 64 latents
    LLM backbone        KOSMOS-1's decoder of 1.3B parameters (D 2048)
    output projector    AlignerNet: a transformer with 77 learned queries, D -> 768
    modality generator  Stable Diffusion 1.5, frozen

Whatever stands in the prompt, words and images of the subjects that are wanted, becomes what Stable Diffusion reads in
the place of its own text encoder's output. "Align before instruct", three stages: "pretrain" the LLM as KOSMOS-1;
"align" AlignerNet alone, on captions without images in the prompt, drawing what it gives to what Stable Diffusion's own
text encoder makes of the caption; "instruct" LLM and AlignerNet by the gradient that passes through the frozen UNet, on
captions whose nouns are followed by cut-outs of the image, on edits (InstructPix2Pix) and on plain captions, 2:2:1.

    mmjax train --config kosmos_g:1.9b --workdir runs/kosmos_g --config.mesh.fsdp=-1 \
        --config.processor.tokenizer=/models/kosmos-tokenizer \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.init.generators.image_out=/models/stable-diffusion-v1-5 \
        --config.processor.images.image_out.captions=/models/stable-diffusion-v1-5/tokenizer \
        --config.stages.pretrain.data.path=/data/interleaved.jsonl \
        --config.stages.align.data.path=/data/captions.jsonl \
        --config.stages.instruct.data.path=/data/compositions.jsonl

What an assistant shows is to be made: {"type": "image", "path": FILE, "caption": TEXT} as its answer.
An edit is a question with the image to change and what to change.
Once "instruct" is over no captions are needed. Any other UNet, LoRA or ControlNet of Stable Diffusion 1.5 may take the
place of the one that was trained with.

Not as published: AlignerNet reads the states of 64 signal tokens behind the prompt, not those of the whole prompt, and
is not asked to give them back (the paper's second loss). Its depth and width, batch sizes, steps and rates of the last
two stages are not the paper's, but of its order. What KOSMOS-1 differs in, see configs/kosmos_1.py.

Trained weights: none in a layout that is read here.
"""

from configs.generators import CLIP_L_TEXT, STABLE_DIFFUSION_1_5, queries, small, small_text, targets
from configs.parts import CLIP_L_224, PLAIN_1_3B, perceiver, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import drawn, separated

SIZES = {"1.9b": PLAIN_1_3B, "tiny": tiny_llm(PLAIN_1_3B)}
ABOUT = {
    "title": "KOSMOS-G",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "CLIP ViT-L/14 at 224 px", "Perceiver of 64 latents", "a decoder of 1.3B", "AlignerNet (learned queries)",
        "Stable Diffusion 1.5",
    ),
    "verified": "shapes and counts; tiny trained through its three stages; output projector equal to torch's, denoiser "
    "and autoencoder to diffusers'",
}  # fmt: skip
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"
OUTPUT = "output_projectors/.*"


def get_config(arg: str = "1.9b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("kosmos_g", arg, SIZES), arg == "tiny"
    tower = tiny_tower({**CLIP_L_224, "feature_layers": (-1,)}, tiny)
    generator = small(STABLE_DIFFUSION_1_5, tiny)
    signals = {"image_out": tuple(f"[IMG{number}]" for number in range(2 if tiny else 64))}
    sizes = {"inner_width": 768, "num_heads": 12, "mlp_width": 3072, "encoder_layers": 12, "decoder_layers": 12}
    aligner = queries(llm, generator, 77, tiny, pre_norm=True, adds_embeddings=False, **({} if tiny else sizes))
    settings = {"weight_decay": 0.01, "b2": 0.98, "schedule": "linear"}
    out = system(
        "kosmos_g",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": perceiver(tower, llm, tiny, num_layers=1)},
        stages={
            "pretrain": stage(
                tiny, PROJECTORS, LLM, steps=300000, batch_size=600, learning_rate=2e-4, warmup=375 / 300000,
                mode="plain", **settings,
            ),
            "align": stage(
                tiny, NEW_ROWS, OUTPUT, steps=300000, batch_size=1024, learning_rate=1e-3,
                loss_weights={"text": 1.0, "alignment": 1.0, "diffusion": 0.0}, **settings,
            ),
            "instruct": stage(
                tiny, PROJECTORS, LLM, OUTPUT, steps=200000, batch_size=1024, learning_rate=1e-4,
                loss_weights={"text": 1.0, "alignment": 0.0, "diffusion": 1.0, "drop": 0.1}, **settings,
            ),
        },
        images={
            "image": squeezed(tower["image_size"]),
            "image_out": targets("ImageTargets", (8, 8) if tiny else (512, 512), captions=None),
        },
        template=separated(" ", drawn(signals)),
        lengths=(128, 256, 512, 1024),
        new_rows=True,
        generators={"image_out": generator},
        output_projectors={"image_out": aligner},
        signals=signals,
        generator_encoders={"image_out": small_text(CLIP_L_TEXT, tiny)},
    )  # fmt: skip
    # Several subjects a prompt.
    out["processor"]["items"]["image"] = (0, 1, 2, 4)
    return out
