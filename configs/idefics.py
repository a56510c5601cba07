r"""IDEFICS: an open Flamingo on Llama (Laurençon et al., 2023, "OBELICS", arXiv 2306.16527).

    modality encoder    OpenCLIP ViT-H/14 at 224 px, frozen
    input projector     Perceiver resampler: 64 latents of width 1280, six layers
    LLM backbone        Llama 7B (or 65B), frozen; before every fourth layer a cross-attention to the latents with
                        normalised queries and keys, and an MLP; their gates start at zero
    output projector    none: it answers in text
    modality generator  none

It is trained on web pages with their images (OBELICS) and on pairs; the words for images are new rows and trained too.
Rates are published, step counts as far as published. The instruct stage trains everything:

    mmjax train --config idefics:9b --workdir runs/idefics --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b \
        --config.stages.pretrain.data.path="('/data/obelics.jsonl', '/data/laion.jsonl')" \
        --config.stages.pretrain.data.weights="(0.74, 0.26)" --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: HuggingFaceM4/idefics-9b, -9b-instruct, -80b.
"""

from configs.parts import LLAMA_7B, perceiver, tiny_llm, tiny_tower
from configs.rare_parts import CLIP_H_224
from configs.stages import ENCODERS, FUSION, LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import PLAIN

LLAMA_65B = {**LLAMA_7B, "width": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 64, "mlp_width": 22016}
# The LLM, and before how many of its layers one reads images.
SIZES = {"9b": (LLAMA_7B, 4), "80b": (LLAMA_65B, 4), "tiny": (tiny_llm(LLAMA_7B), 1)}
ABOUT = {
    "title": "IDEFICS",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("OpenCLIP ViT-H/14 at 224 px", "Perceiver resampler, 64 latents", "Llama with gated cross-attention"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained",
}


def get_config(arg: str = "9b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, every), tiny = choose("idefics", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_H_224, tiny)
    sizes = {"head_dim": 96, "mlp_width": 4 * tower["width"], "qk_norm": True, "output_map": False}
    config = system(
        "idefics",
        arg,
        {
            **llm,
            "fusion": {
                "kind": "gated_cross_attention",
                "media_width": tower["width"],
                "every": every,
                "qk_norm": True,
                "gate": "vector",
            },
        },
        encoders={"image": tower},
        projectors={"image": {**perceiver(tower, llm, tiny, **sizes), "width": tower["width"]}},
        stages={
            "pretrain": stage(
                tiny, PROJECTORS, FUSION, "backbone/embed_new/.*", "backbone/lm_head_new/.*",
                steps=200000, batch_size=1024, learning_rate=1e-5, warmup=0.01, weight_decay=0.1,
            ),
            "instruct": stage(tiny, ENCODERS, PROJECTORS, LLM, steps=3500, batch_size=512, learning_rate=1e-6),
        },
        images={"image": square(tower["image_size"])},
        template=PLAIN,
        lengths=(64, 128, 256, 512, 1024),
        new_rows=True,
        inside=("image",),
        inside_sees="latest",
    )  # fmt: skip
    config["processor"]["items"] = {"image": (0, 1, 2, 4, 6)}
    return config
