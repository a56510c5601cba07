r"""mPLUG-Owl: modules trained one after the other (Ye et al., 2023, arXiv 2304.14178).

    modality encoder    CLIP ViT-L/14 at 224 px, TRAINED in the first stage
    input projector     visual abstractor: 64 queries and one that ends the image, 6 layers of cross-attention
    LLM backbone        Llama 7B, with LoRA in the second stage
    output projector    none: it answers in text
    modality generator  none

Stage 1 trains tower and abstractor on pairs with the LLM frozen; stage 2 freezes both and adapts the LLM on text and
image instructions together. The abstractor is a Perceiver of the published sizes.

    mmjax train --config mplug_owl:7b --workdir runs/owl --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.pretrain.data.path=/data/laion_coyo_cc.jsonl \
        --config.stages.instruct.data.path=/data/owl_instruct.jsonl

Trained weights: MAGAer13/mplug-owl-llama-7b (in a format of their own, which is not read).
"""

from configs.parts import CLIP_L_224, LLAMA_7B, perceiver, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LORA, PROJECTORS, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import turns

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "mPLUG-Owl",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px, trained first", "abstractor of 65 queries", "Llama 7B with LoRA"),
    "verified": "7.2B parameters as published; tiny trained: the tower in stage 1, adapters alone in stage 2",
}
SYSTEM = "The following is a conversation between a curious human and AI assistant."


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("mplug_owl", arg, SIZES), arg == "tiny"
    tower = tiny_tower({**CLIP_L_224, "feature_layers": (-1,), "feature_strategy": "full"}, tiny)
    abstractor = perceiver(tower, llm, tiny, num_latents=65, mlp_width=2816, gated=True, activation="silu")
    adapters = lora(8, 32.0, ("q", "v"))
    return system(
        "mplug_owl",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": abstractor},
        stages={
            "pretrain": stage(
                tiny, ENCODERS, PROJECTORS, steps=50000, batch_size=2100, learning_rate=1e-4, mode="plain"
            ),
            "instruct": stage(tiny, LORA, steps=2000, batch_size=256, learning_rate=2e-5, lora=adapters),
        },
        images={"image": squeezed(tower["image_size"])},
        template=turns("Human:", "AI:", SYSTEM, "\\n"),
        lengths=(128, 256, 512, 2048),
    )
