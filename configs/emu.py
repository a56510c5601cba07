r"""Emu: the next token, or the next visual embedding (Sun et al., 2023, arXiv 2307.05222).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, trained too
    input projector     a transformer of 32 queries on its features (the paper's are causal), and a linear map
    LLM backbone        LLaMA 13B (D 5120)
    output projector    a linear map D -> D: the regression head
    modality generator  next embeddings; Stable Diffusion 1.5 decodes them

Images stand anywhere in the text as 32 embeddings, and the LLM learns to say each of them from what stands before, by
their squared difference, as it says the next word by cross-entropy. What is to be said has no gradient here.

    mmjax train --config emu:13b --workdir runs/emu --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-13b \
        --config.stages.pretrain.data.path=/data/interleaved.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

`mmjax.infer.embeddings.EmbeddingPrograms` writes the embeddings of an image behind a prompt that ends with [IMG]. The
decoder is a Stable Diffusion whose UNet reads them instead of a text; it is trained by itself, on embeddings of images
and the images, and is not part of this config. As far as published: the causal attention among the 32 queries is not
modelled (BLIP-2's Q-Former stands in), nor are steps and rates given for every stage.

Trained weights: BAAI/Emu.
"""

from configs.parts import EVA_G_224, LLAMA_13B, qformer, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, LORA, PROJECTORS, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import BARE, turns

SIZES = {"13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_13B)}
ABOUT = {
    "title": "Emu",
    "inputs": ("text", "image"),
    "outputs": ("text", "image embeddings"),
    "parts": five(
        "EVA-CLIP ViT-g/14 at 224 px", "32 queries and a linear map", "LLaMA", "linear map (regression head)",
        "next embeddings (decoded by Stable Diffusion 1.5)",
    ),
    "verified": "shapes and counts; tiny trained through its stages; the loss and its gradients equal to torch's; "
    "writing embeddings equal to reading the whole text anew",
}  # fmt: skip


def get_config(arg: str = "13b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("emu", arg, SIZES), arg == "tiny"
    tower = tiny_tower(EVA_G_224, tiny)
    both = {"loss_weights": {"text": 1.0, "regression": 1.0}}
    return system(
        "emu",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": qformer(tower, llm, tiny)},
        stages={
            "pretrain": stage(
                tiny, ENCODERS, PROJECTORS, LLM, "output_projectors/.*", steps=10350, batch_size=1024,
                learning_rate=1e-4, schedule="cosine", b2=0.98, weight_decay=0.05, **both,
            ),
            "instruct": stage(
                tiny, LORA, steps=10000, batch_size=128, learning_rate=1e-5, lora=lora(16, 16.0),
                loss_weights={"text": 1.0, "regression": 0.0},
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=turns("[USER]:", "[ASSISTANT]:", item=BARE, in_order=True),
        lengths=(128, 512, 1024, 2048),
        generators={"image_out": {"kind": "next_embedding", "of": "image", "width": llm["width"]}},
        output_projectors={
            "image_out": {"kind": "linear_output", "in_width": llm["width"], "width": llm["width"]},
        },
        signals={"image_out": ("[IMG]",)},
    )  # fmt: skip
