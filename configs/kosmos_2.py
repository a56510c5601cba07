r"""KOSMOS-2: a language model that grounds its words in boxes (Peng et al., 2023, arXiv 2306.14824).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen but for its last layer in the paper; frozen here
    input projector     one cross-attention of 64 learned latents over normalised features
    LLM backbone        a Magneto transformer of 1.3B with norms inside its halves, trained
    output projector    none: it answers in text; a box is two of 1024 places, <patch_index_0000>
    modality generator  none

Captions, pages and grounded captions (GRIT: `mmjax.data.boxes`, "kosmos2", writes a phrase and its boxes) in one stage,
then instructions. Steps, batch and rate of the first are published; the second's are as far as published:

    mmjax train --config kosmos_2:1.6b --workdir runs/kosmos2 --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/kosmos-2-patch14-224 \
        --config.stages.pretrain.data.path="('/data/grit.jsonl', '/data/captions.jsonl', '/data/text.jsonl')" \
        --config.stages.pretrain.data.weights="(0.4, 0.4, 0.2)" --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: microsoft/kosmos-2-patch14-224.
"""

from configs.parts import num_features, tiny_llm, tiny_tower
from configs.rare_parts import CLIP_L_NORMED, KOSMOS_2_LLM
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import PLAIN

SIZES = {"1.6b": KOSMOS_2_LLM, "tiny": {**tiny_llm(KOSMOS_2_LLM), "embedding_scale": 8.0}}
ABOUT = {
    "title": "KOSMOS-2",
    "inputs": ("text", "image"),
    "outputs": ("text", "box"),
    "parts": five("CLIP ViT-L/14 at 224 px", "cross-attention of 64 latents", "Magneto transformer of 1.3B"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; its boxes' spelling; tiny "
    "trained",
}


def get_config(arg: str = "1.6b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("kosmos_2", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_NORMED, tiny)
    latents = {
        "kind": "latent_attention",
        "in_width": tower["width"],
        "width": llm["width"],
        "num_latents": 4 if tiny else 64,
        "num_heads": llm["num_heads"],
        "output_scale": llm["embedding_scale"],
        "num_features": num_features(tower),
    }
    settings = {"weight_decay": 0.01, "b2": 0.98}
    return system(
        "kosmos_2",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": latents},
        stages={
            "pretrain": stage(
                tiny, PROJECTORS, LLM, steps=60000, batch_size=1024, learning_rate=2e-4, warmup=375 / 60000, **settings
            ),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=10000, batch_size=256, learning_rate=1e-5, **settings),
        },
        images={"image": square(tower["image_size"])},
        template=PLAIN,
        lengths=(128, 256, 512, 1024, 2048),
    )
