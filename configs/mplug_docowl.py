r"""mPLUG-DocOwl: documents read without OCR (Ye et al., 2023, arXiv 2307.02499).

    modality encoder    CLIP ViT-L/14 at 224 px in mPLUG-Owl; 448 px here, so that letters can be seen; frozen
    input projector     visual abstractor: 64 queries and one that ends the image, 6 layers, trained
    LLM backbone        Llama 7B, with LoRA in the second stage
    output projector    none: it answers in text
    modality generator  none

It goes on from mPLUG-Owl. Every task on a document (question, fact, extraction, caption) is one format, an instruction
and its answer. Stage 1 is on documents alone, stage 2 on documents, pictures and text together; the numbers are as far
as published. DocOwl 1.5's tiles and its H-Reducer are not here; Monkey's tiles are.

    mmjax train --config mplug_docowl:7b --workdir runs/docowl --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b --config.stages.documents.data.path=/data/documents.jsonl \
        --config.stages.unified.data.path="('/data/documents.jsonl', '/data/llava.jsonl', '/data/alpaca.jsonl')"

Trained weights: mPLUG/DocOwl (in a format of their own, which is not read).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, perceiver, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import turns

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "mPLUG-DocOwl",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 448 px", "abstractor of 65 queries", "Llama 7B with LoRA"),
    "verified": "shapes and counts of every size; tiny trained: abstractor and adapters, all else unchanged",
}
SYSTEM = "The following is a conversation between a curious human and AI assistant."


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("mplug_docowl", arg, SIZES), arg == "tiny"
    tower = {**CLIP_L_224, "image_size": 448, "feature_layers": (-1,), "feature_strategy": "full"}
    tower = tiny_tower(tower, tiny)
    abstractor = perceiver(tower, llm, tiny, num_latents=65, mlp_width=2816, gated=True, activation="silu")
    adapters, trained = lora(8, 32.0, ("q", "v")), (PROJECTORS, LORA)
    return system(
        "mplug_docowl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": abstractor},
        stages={
            "documents": stage(tiny, *trained, steps=10000, batch_size=256, learning_rate=1e-4, lora=adapters),
            "unified": stage(tiny, *trained, steps=3000, batch_size=256, learning_rate=2e-5, lora=adapters),
        },
        images={"image": squeezed(tower["image_size"])},
        template=turns("Human:", "AI:", SYSTEM, "\\n"),
        lengths=(128, 256, 512, 1024),
    )
