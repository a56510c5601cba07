r"""LISA: reasoning segmentation, the embedding of a word as a mask (Lai et al., 2024, arXiv 2308.00692).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: 256 patches
    input projector     a linear map 1024 -> D, frozen
    LLM backbone        LLaVA's, 7B (D 4096) or 13B (D 5120), with LoRA of rank 8 on q and v; rows of new words trained
    output projector    MLP D -> D -> 256 with ReLU, on the hidden state that says [SEG]
    modality generator  SAM: its ViT-H at 1024 px frozen, its mask decoder trained

It starts from LLaVA, whose map has been trained before: --config.init.backbone takes LLaVA's LLM, and the stage "map"
trains the map on captions, as LLaVA did. Then, on data that mix semantic segmentation, referring segmentation, VQA and
reasoning segmentation:

    mmjax train --config lisa:7b --workdir runs/lisa --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llava-7b \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.init.generators.mask=/models/sam-vit-huge \
        --config.stages.map.data.path=/data/chat.json \
        --config.stages.segment.data.path=/data/segment.jsonl

What is to be drawn is a part of an answer among its words, {"type": "mask", "mask": FILE}, or "polygon" or "box".
The published answers are "It is [SEG].". The loss is 1.0 of the text's,
2.0 of the masks' cross-entropy and 0.5 of their DICE. Masks are compared in the padded square at 256 x 256, where
the published code resizes them to each image. `mmjax chat` and `mmjax generate` write what it draws as pictures, white
inside; `mmjax.infer.masks.generate_masks` gives the numbers.

Trained weights: xinlai/LISA-7B-v1.
"""

from configs.parts import CLIP_L_224, LLAMA_7B, LLAMA_13B, linear, tiny_llm, tiny_tower
from configs.stages import LORA, PROJECTORS, lora, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA_SYSTEM, turns

SIZES = {"7b": LLAMA_7B, "13b": LLAMA_13B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "LISA",
    "inputs": ("text", "image"),
    "outputs": ("text", "mask"),
    "parts": five("CLIP ViT-L/14 at 224 px", "linear map", "LLaVA (Llama) with LoRA", "MLP, 2 layers", "SAM ViT-H"),
    "verified": "shapes and counts of every size; tiny trained; mask decoder and encoder equal to transformers' SAM",
}

# Kirillov et al., 2023: the huge image encoder of SAM. The mask decoder's defaults are SAM's.
SAM_H = {
    "kind": "sam_encoder",
    "width": 1280,
    "num_layers": 32,
    "num_heads": 16,
    "mlp_width": 5120,
    "global_layers": (7, 15, 23, 31),
}
ITEM = "('[SEG]' if part['type'] == 'mask' else '<image>\\n')"
TINY_SAM = {
    "kind": "sam_encoder", "image_size": 64, "width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 48,
    "out_width": 16, "window_size": 3, "global_layers": (1,),
}  # fmt: skip
TINY_DECODER = {
    "width": 16, "image_size": 64, "grid_size": 4, "num_layers": 2, "num_heads": 2, "mlp_width": 24, "mask_width": 8,
    "iou_width": 16,
}  # fmt: skip


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("lisa", arg, SIZES), arg == "tiny"
    tower, sam = tiny_tower(CLIP_L_224, tiny), TINY_SAM if tiny else SAM_H
    decoder = {"kind": "mask_decoder", **(TINY_DECODER if tiny else {})}
    projector = {
        "kind": "mlp_output",
        "in_width": llm["width"],
        "hidden": llm["width"],
        "width": decoder.get("width", 256),
    }
    return system(
        "lisa",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages={
            "map": stage(tiny, PROJECTORS, steps=4650, batch_size=128, learning_rate=2e-3, mode="plain"),
            "segment": stage(
                tiny,
                LORA,
                "backbone/(embed|lm_head)/.*",
                "output_projectors/.*",
                "generators/.*",
                steps=5000,
                batch_size=160,
                learning_rate=3e-4,
                warmup=0.02,
                schedule="linear",
                b2=0.95,
                lora=lora(8, 16.0, ("q", "v")),
                loss_weights={"text": 1.0, "bce": 2.0, "dice": 0.5},
            ),
        },
        images={
            "image": square(tower["image_size"]),
            "mask": {
                "mask_processor_type": "MaskTargets",
                "image_size": sam.get("image_size", 1024),
                "mask_size": 16 if tiny else 256,
            },
        },
        template=turns("USER:", "ASSISTANT:", VICUNA_SYSTEM, item=ITEM, in_order=True),
        lengths=(384, 512, 768),
        generators={"mask": decoder},
        output_projectors={"mask": projector},
        signals={"mask": ("[SEG]",)},
        generator_encoders={"mask": sam},
        signal_states="before",
    )
