r"""Janus-Pro: an LLM that sees through SigLIP and draws in VQ codes (Chen et al., 2025, arXiv 2501.17811).

    modality encoder    SigLIP-L/16 at 384 px: 576 features, normed
    input projector     MLP, 2 layers
    LLM backbone        DeepSeek LLM, 1.3B (D 2048) or 7B (D 4096)
    output projector    an output layer of the codes' own, and an embedding with an MLP to read them
    modality generator  LlamaGen's VQ autoencoder: 16384 codes, 24 x 24 of them an image of 384 px

What is trained here is what it sees and says: captions for the projector, then chats for the LLM too. The loss of the
codes that it draws is not part of these stages; what they need (`codes/...`) stays as it was loaded. Learning rates as
far as published; the published stages mix in images to be drawn.

    mmjax train --config janus:1b --workdir runs/janus --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/Janus-Pro-1B \
        --config.stages.adapt.data.path=/data/captions.json --config.stages.instruct.data.path=/data/chats.json

Draw with it: `model.generate(**inputs, generation_mode="image", guidance_scale=5.0).images`, where the prompt ends with
the token that begins an image. Size "tiny" has random weights and a byte tokenizer:

    mmjax train --config janus:tiny --workdir runs/tiny \
        --config.stages.adapt.data.path=captions.json --config.stages.instruct.data.path=chats.json

Trained weights: deepseek-community/Janus-Pro-1B and Janus-Pro-7B.
"""

from configs.parts import LLAMA_7B, SIGLIP_SO400M_384, Part, grid_of, mlp, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import BARE, turns

DEEPSEEK_7B: Part = {**LLAMA_7B, "vocab_size": 102400, "num_layers": 30, "max_positions": 16384}
DEEPSEEK_1B: Part = {
    **DEEPSEEK_7B, "width": 2048, "num_layers": 24, "num_heads": 16, "num_kv_heads": 16, "mlp_width": 5632,
}  # fmt: skip
SIGLIP_L_384: Part = {
    **SIGLIP_SO400M_384, "patch_size": 16, "width": 1024, "num_layers": 24, "mlp_width": 4096, "activation": "gelu",
    "feature_norm": True, "feature_layers": (-1,),
}  # fmt: skip
# Sun et al., 2024 ("LlamaGen").
VQ_16: Part = {
    "kind": "vq_autoencoder", "codes": 16384, "latent_channels": 8, "inner_channels": 256, "unit_codes": True,
    "widths": (128, 128, 256, 256, 512), "attention_levels": (4,), "scale": 1.0, "image_size": 384,
}  # fmt: skip
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SIZES = {"1b": DEEPSEEK_1B, "7b": DEEPSEEK_7B, "tiny": tiny_llm(DEEPSEEK_1B)}
ABOUT = {
    "title": "Janus-Pro",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "SigLIP-L/16 at 384 px", "MLP, 2 layers", "DeepSeek LLM", "output layer of the codes", "VQ autoencoder"
    ),
    "verified": "logits, greedy tokens, codes drawn with guidance, their pixels and export equal to transformers, at "
    "small sizes; tiny trained to see, not to draw",
}


def get_config(arg: str = "1b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("janus", arg, SIZES), arg == "tiny"
    tower = {**tiny_tower(SIGLIP_L_384, tiny), **({"patch_size": 14} if tiny else {})}
    small = {"codes": 16, "widths": (8, 8), "attention_levels": (1,), "blocks": 1, "groups": 4, "image_size": 8}
    codes = {
        "kind": "image_codes",
        "autoencoder": {**VQ_16, **(small if tiny else {})},
        "width": llm["width"],
        "grid": grid_of(tower),
        "first": llm["vocab_size"],
        "own": True,
    }
    return system(
        "janus",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": mlp(tower["width"], llm)},
        stages={
            "adapt": stage(tiny, PROJECTORS, steps=10000, batch_size=256, learning_rate=1e-3, mode="plain"),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=20000, batch_size=128, learning_rate=4e-5),
        },
        images={"image": squeezed(tower["image_size"], **HALF)},
        template=turns("<|User|>:", "<|Assistant|>:", SYSTEM, between="\\n\\n", item=BARE),
        lengths=(768, 1024, 2048),
        media_tokens=None if tiny else {"image": ("<image_placeholder>", 100581)},
        codes=codes,
    )
