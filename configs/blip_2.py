r"""BLIP-2: a Q-Former between a frozen tower and a frozen LLM (Li et al., 2023, arXiv 2301.12597).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, frozen
    input projector     Q-Former: 32 queries, 12 layers, and a linear map 768 -> D
    LLM backbone        OPT (2.7B, 6.7B), or Flan-T5 (XL, XXL), frozen
    output projector    none: it answers in text
    modality generator  none

Here is the paper's second stage, which teaches the Q-Former to be read by the LLM. The first one (contrastive,
matching, and generative losses without an LLM) is not among the stages; start from a Q-Former that had it:

    mmjax train --config blip_2:opt_2.7b --workdir runs/blip2 --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/opt-2.7b \
        --config.stages.generate.data.path=/data/captions_129m.jsonl

Flan-T5's encoder reads the picture and the question, its decoder writes the answer (`mmjax.data.answers`). The paper
cuts a caption in two there and has the encoder read the first half; here it reads the picture alone.

Trained weights: Salesforce/blip2-opt-2.7b, -opt-6.7b, -flan-t5-xl, -flan-t5-xxl.
"""

from configs.parts import EVA_G_224, FLAN_T5_XL, FLAN_T5_XXL, OPT_2_7B, OPT_6_7B, qformer, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import QUESTION, QUESTION_READ

SIZES = {
    "opt_2.7b": OPT_2_7B,
    "opt_6.7b": OPT_6_7B,
    "flan_t5_xl": FLAN_T5_XL,
    "flan_t5_xxl": FLAN_T5_XXL,
    "tiny": tiny_llm(OPT_2_7B),
    "tiny_t5": tiny_llm(FLAN_T5_XL),
}
ABOUT = {
    "title": "BLIP-2",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14", "Q-Former of 32 queries, linear map", "OPT or Flan-T5"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes (OPT and T5); the loss of "
    "BLIP-2 with T5 equal to transformers'; tiny trained with both",
}


def get_config(arg: str = "opt_2.7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("blip_2", arg, SIZES), arg.startswith("tiny")
    tower = tiny_tower(EVA_G_224, tiny)
    two_sided = llm["kind"] == "encoder_decoder"
    batch_size = 1520 if two_sided else 1920
    settings = {"weight_decay": 0.05, "b2": 0.98, "warmup": 0.025}
    return system(
        "blip_2",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": qformer(tower, llm, tiny)},
        stages={
            "generate": stage(
                tiny, PROJECTORS, steps=80000, batch_size=batch_size, learning_rate=1e-4, mode="plain", **settings
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=QUESTION_READ if two_sided else QUESTION,
        lengths=(64, 96, 128, 256),
    )
