r"""MiniGPT-5: words and pictures in turn, by generative vokens (Zheng et al., 2023, arXiv 2310.02239).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, frozen
    input projector     MiniGPT-4's: BLIP-2's Q-Former and a linear map 768 -> D, frozen: 32 tokens
    LLM backbone        Vicuna 7B (D 4096) with LoRA; rows of [IMG0] to [IMG7] trained
    output projector    MLP D -> 1024 with GELU, then 77 learned queries in a small pre-norm transformer
    modality generator  Stable Diffusion 2.1 (base), frozen

Two stages. "unimodal" teaches eight vokens on single captions: the LLM writes them behind a caption, their condition is
drawn to what Stable Diffusion's own text encoder makes of it, and to what the denoiser needs to make the image.
"multimodal" adds LoRA, on stories and dialogues whose words and pictures alternate.

    mmjax train --config minigpt_5:7b --workdir runs/minigpt_5 --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b \
        --config.init.generators.image_out=/models/stable-diffusion-2-1-base \
        --config.processor.images.image_out.captions=/models/stable-diffusion-2-1-base/tokenizer \
        --config.stages.unimodal.data.path=/data/cc3m.jsonl \
        --config.stages.multimodal.data.path=/data/vist.jsonl

What an assistant shows is to be made: {"type": "image", "path": FILE, "caption": TEXT} among the parts of its answer.
A tenth of the conditions is dropped for
classifier-free guidance. As far as published: the weights of the losses, learning rates, batch sizes, the rank of LoRA,
and the widths of the transformer, whose heads are those of torch's default. Start from MiniGPT-4's linear map: it is
not trained here.

Trained weights: kzheng/MiniGPT-5 (maps, rows and adapters as a torch file).
"""

from configs.generators import CLIP_H_TEXT, STABLE_DIFFUSION_2_1_BASE, queries, small, small_text, targets
from configs.parts import EVA_G_224, LLAMA_7B, qformer, tiny_llm, tiny_tower
from configs.stages import LORA, lora, stage
from configs.system import choose, five, squeezed, system
from configs.templates import drawn, turns

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "MiniGPT-5",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "EVA-CLIP ViT-g/14",
        "Q-Former and a linear map (MiniGPT-4's)",
        "Vicuna with LoRA",
        "MLP and learned queries (small transformer)",
        "Stable Diffusion 2.1 (base)",
    ),
    "verified": "shapes and counts; tiny trained through both stages; output projector equal to torch's, denoiser and "
    "autoencoder to diffusers'",
}
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"
OUTPUT = "output_projectors/.*"


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("minigpt_5", arg, SIZES), arg == "tiny"
    tower, generator = tiny_tower(EVA_G_224, tiny), small(STABLE_DIFFUSION_2_1_BASE, tiny)
    signals = {"image_out": tuple(f"[IMG{number}]" for number in range(2 if tiny else 8))}
    sizes = {} if tiny else {"inner_width": 1024, "num_heads": 8, "mlp_width": 4096}
    output = queries(
        llm, generator, 77, tiny, hidden=16 if tiny else 1024, pre_norm=True, out_map=False, adds_embeddings=False,
        **sizes,
    )
    weights = {"text": 0.01, "diffusion": 1.0, "alignment": 0.1, "drop": 0.1}
    settings = {"batch_size": 32, "learning_rate": 2e-5, "weight_decay": 0.01}
    return system(
        "minigpt_5",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": qformer(tower, llm, tiny)},
        stages={
            "unimodal": stage(
                tiny, NEW_ROWS, OUTPUT, steps=200000, loss_weights=weights, **{**settings, "learning_rate": 2e-4}
            ),
            "multimodal": stage(
                tiny, NEW_ROWS, OUTPUT, LORA, steps=20000, loss_weights={**weights, "alignment": 0.0},
                lora=lora(8, 16.0, ("q", "v")), **settings,
            ),
        },
        images={
            "image": squeezed(tower["image_size"]),
            "image_out": targets("ImageTargets", (8, 8) if tiny else (512, 512), captions=None),
        },
        template=turns("###Human:", "###Assistant:", item=drawn(signals), in_order=True),
        lengths=(128, 256, 512),
        new_rows=True,
        generators={"image_out": generator},
        output_projectors={"image_out": output},
        signals=signals,
        generator_encoders={"image_out": small_text(CLIP_H_TEXT, tiny)},
    )  # fmt: skip
