r"""InternVL 3: a ViT trained with its LLM from the beginning (Zhu et al., 2025, arXiv 2504.10479).

    modality encoder    InternViT-300M at 448 px: 1024 features, trained
    input projector     squares of 2 x 2 features joined (pixel shuffle), norm, MLP: 256 tokens
    LLM backbone        Qwen2.5 (0.5B, 1.5B, 7B), trained
    output projector    none: it answers in text
    modality generator  none

InternVL cuts large images into up to twelve tiles and adds a view of the whole; this config shows the whole alone (the
processor of a released checkpoint, from --config.from_pretrained, cuts). Steps and batches are this project's, rates
as far as published:

    mmjax train --config internvl:1b --workdir runs/internvl --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/InternVL3-1B-hf \
        --config.stages.pretrain.data.path=/data/mixed.jsonl --config.stages.instruct.data.path=/data/chats.jsonl

Trained weights: OpenGVLab/InternVL3-1B-hf, -2B-hf, -8B-hf.
"""

from configs.parts import QWEN2_0_5B, QWEN2_1_5B, QWEN2_7B, grid_of, tiny_llm, tiny_tower
from configs.rare_parts import INTERN_VIT_300M
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import chatml

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
WORDS = {"vocab_size": 151674, "tie_embeddings": False}
SIZES = {
    "1b": {**QWEN2_0_5B, **WORDS},
    "2b": {**QWEN2_1_5B, **WORDS},
    "8b": {**QWEN2_7B, **WORDS},
    "tiny": tiny_llm(QWEN2_0_5B),
}
ABOUT = {
    "title": "InternVL 3",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("InternViT-300M at 448 px, trained", "pixel shuffle, MLP", "Qwen2.5"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; parameters as published; tiny "
    "trained",
}


def get_config(arg: str = "1b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("internvl", arg, SIZES), arg == "tiny"
    tower, everything = tiny_tower(INTERN_VIT_300M, tiny), (ENCODERS, PROJECTORS, LLM)
    shuffle = {
        "kind": "merge",
        "in_width": tower["width"],
        "width": llm["width"],
        "factor": 2,
        "grid": grid_of(tower),
        "norm_at": "after",
        "norm_eps": 1e-5,
        "hidden": llm["width"],
    }
    return system(
        "internvl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": shuffle},
        stages={
            "pretrain": stage(tiny, *everything, steps=50000, batch_size=512, learning_rate=4e-5),
            "instruct": stage(tiny, *everything, steps=20000, batch_size=512, learning_rate=2e-5),
        },
        images={"image": squeezed(tower["image_size"], **IMAGENET)},
        template=chatml("'<img><IMG_CONTEXT></img>\\n'"),
        lengths=(512, 1024, 2048),
        media_tokens={"image": ("<IMG_CONTEXT>", 151667)},
    )
