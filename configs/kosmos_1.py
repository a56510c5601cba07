r"""KOSMOS-1: language is not all you need (Huang et al., 2023, arXiv 2302.14045).

    modality encoder    CLIP ViT-L/14 at 224 px
    input projector     a Perceiver of 64 latents, one layer in the LLM's width
    LLM backbone        a decoder of 1.3B parameters, 24 layers of width 2048, trained from scratch
    output projector    none: it answers in text
    modality generator  none

Trained on text, pairs and interleaved web pages together (1.2M tokens a batch, 300k steps), then on instructions in
text alone. The paper's decoder is Magneto with xPos; here norms stand before the sublayers alone and positions are
plain rotary. In the paper the last layer of CLIP is trained too; here CLIP is frozen.

    mmjax train --config kosmos_1:1.6b --workdir runs/kosmos --config.mesh.fsdp=-1 \
        --config.processor.tokenizer=/models/kosmos-tokenizer \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.pretrain.data.path=/data/interleaved.jsonl \
        --config.stages.instruct.data.path=/data/unnatural_flan.jsonl

Trained weights: none; those of its successor are microsoft/kosmos-2-patch14-224.
"""

from configs.parts import CLIP_L_224, PLAIN_1_3B, perceiver, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import PLAIN

SIZES = {"1.6b": PLAIN_1_3B, "tiny": tiny_llm(PLAIN_1_3B)}
ABOUT = {
    "title": "KOSMOS-1",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "Perceiver of 64 latents", "a decoder of 1.3B, from scratch"),
    "verified": "1.66B parameters (the paper rounds to 1.6B); tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "1.6b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("kosmos_1", arg, SIZES), arg == "tiny"
    tower, both = tiny_tower({**CLIP_L_224, "feature_layers": (-1,)}, tiny), (PROJECTORS, LLM)
    resampler = perceiver(tower, llm, tiny, num_layers=1)
    settings = {"weight_decay": 0.01, "b2": 0.98, "schedule": "linear"}
    return system(
        "kosmos_1",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": resampler},
        stages={
            "pretrain": stage(
                tiny, *both, steps=300000, batch_size=600, learning_rate=2e-4, warmup=375 / 300000, mode="plain",
                **settings,
            ),
            "instruct": stage(
                tiny, *both, steps=10000, batch_size=256, learning_rate=2e-5, warmup=0.0375, **settings
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=PLAIN,
        lengths=(128, 512, 2048),
    )  # fmt: skip
