r"""LLaVA-1.5: CLIP ViT-L/14-336, a two-layer MLP, Vicuna (Liu et al., 2023, arXiv 2310.03744).

    modality encoder    CLIP ViT-L/14 at 336 px: 576 patches of the last layer but one, frozen throughout
    input projector     MLP 1024 -> D -> D with GELU
    LLM backbone        Vicuna 1.5, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

Train it as the paper did, on 558k captions and then 665k instructions (the JSON files and image folders that
the LLaVA repository names):

    mmjax train --config llava_1_5:7b --workdir runs/llava --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.stages.pretrain.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.finetune.data.path=/data/llava_v1_5_mix665k.json

Size "tiny" has random weights and a byte tokenizer, and trains on a CPU in seconds on any such file:

    mmjax train --config llava_1_5:tiny --workdir runs/tiny \
        --config.stages.pretrain.data.path=captions.json --config.stages.finetune.data.path=chats.json

Trained weights: llava-hf/llava-1.5-7b-hf and llava-1.5-13b-hf.
"""

from configs.parts import CLIP_L_336, LLAMA2_7B, LLAMA2_13B, mlp, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA2_7B, "13b": LLAMA2_13B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "LLaVA-1.5",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px", "MLP, 2 layers", "Vicuna 1.5 (Llama 2)"),
    "verified": "logits, loss, greedy tokens and export equal to transformers, at small sizes",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llava_1_5", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_336, tiny)
    return system(
        "llava_1_5",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": mlp(tower["width"], llm)},
        stages={
            # Captions without a template: the image, then the text.
            "pretrain": stage(tiny, PROJECTORS, steps=2180, batch_size=256, learning_rate=1e-3, mode="plain"),
            "finetune": stage(tiny, PROJECTORS, LLM, steps=5198, batch_size=128, learning_rate=2e-5),
        },
        images={"image": square(tower["image_size"], pad_to_square=True)},
        template=VICUNA,
        lengths=(640, 1024, 1536, 2048),
    )
