r"""Janus-Pro: an LLM that sees through SigLIP and draws in VQ codes (Chen et al., 2025, arXiv 2501.17811).

    modality encoder    SigLIP-L/16 at 384 px: 576 features, normed
    input projector     MLP, 2 layers
    LLM backbone        DeepSeek LLM, 1.3B (D 2048) or 7B (D 4096)
    output projector    an output layer of the codes' own, and an embedding with an MLP to read them
    modality generator  LlamaGen's VQ autoencoder: 16384 codes, 24 x 24 of them an image of 384 px

What a user shows is seen through SigLIP; what an assistant shows ({"type": "image", "path": FILE} among the parts of
its answer) is learned as codes, which are told apart by their own output layer, as words are by the LLM's. Codes are
made inside the training step by the frozen VQ autoencoder. Three stages: "adapt" the maps and the codes' layers,
"unify" all but the two image encoders, "instruct" with SigLIP too.

    mmjax train --config janus:1b --workdir runs/janus --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/Janus-Pro-1B \
        --config.stages.adapt.data.path=/data/captions_and_drawings.jsonl \
        --config.stages.unify.data.path=/data/mixture.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

Draw with it: `model.generate(**inputs, generation_mode="image", guidance_scale=5.0).images`, where the prompt ends with
the token that begins an image. Rates, steps and batch sizes are the paper's for the small model, as far as published;
its mixture changes with the stage. For guidance the published training drops a share of the prompts: give some
records an empty one. Size "tiny" has random weights and a byte tokenizer:

    mmjax train --config janus:tiny --workdir runs/tiny --config.stages.adapt.data.path=drawings.jsonl \
        --config.stages.unify.data.path=drawings.jsonl --config.stages.instruct.data.path=drawings.jsonl

Trained weights: deepseek-community/Janus-Pro-1B and Janus-Pro-7B.
"""

from configs.generators import code_images, small_codes
from configs.parts import LLAMA_7B, SIGLIP_SO400M_384, Part, mlp, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import turns

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
    "verified": "logits, greedy tokens, codes drawn with guidance, their pixels and export equal to transformers, the "
    "loss of text and codes and its gradients to torch's, at small sizes; tiny trained through its stages",
}
BEGIN, END, SEEN = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
# What is seen as its tokens, what is drawn as its codes, both between the same two tokens.
ITEM = f"('<image_out>' if part['type'] == 'image_out' else '{BEGIN}{SEEN}{END}')"
# What codes are read and said through; the VQ autoencoder stays as it is.
CODES = "codes/(embedding|(in|out)_fc[12]/.*)"


def get_config(arg: str = "1b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("janus", arg, SIZES), arg == "tiny"
    tower = {**tiny_tower(SIGLIP_L_384, tiny), **({"patch_size": 14} if tiny else {})}
    autoencoder = small_codes(VQ_16, tiny)
    side = autoencoder["image_size"]
    codes = {
        "kind": "image_codes",
        "autoencoder": autoencoder,
        "width": llm["width"],
        "grid": (side // 2 ** (len(autoencoder["widths"]) - 1),) * 2,
        "first": llm["vocab_size"],
        "own": True,
        "port": "image_out",
    }
    settings = {"schedule": "constant", "b2": 0.95}
    return system(
        "janus",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": mlp(tower["width"], llm)},
        stages={
            "adapt": stage(
                tiny, PROJECTORS, CODES, steps=20000, batch_size=256, learning_rate=1e-3, warmup=0.03, **settings
            ),
            "unify": stage(
                tiny, PROJECTORS, CODES, LLM, steps=360000, batch_size=512, learning_rate=1e-4, warmup=5000 / 360000,
                **settings,
            ),
            "instruct": stage(
                tiny, ENCODERS, PROJECTORS, CODES, LLM, steps=80000, batch_size=128, learning_rate=4e-5, warmup=0.0,
                **settings,
            ),
        },
        images={"image": squeezed(tower["image_size"], **HALF), "image_out": code_images(side, BEGIN, END)},
        template=turns("<|User|>:", "<|Assistant|>:", SYSTEM, between="\\n\\n", item=ITEM, in_order=True),
        lengths=(768, 1024, 2048),
        media_tokens={"image": (SEEN, 258 if tiny else 100581)},
        controls=(BEGIN, END),
        codes=codes,
    )  # fmt: skip
