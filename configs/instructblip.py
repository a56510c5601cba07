r"""InstructBLIP: a Q-Former that reads the instruction too (Dai et al., 2023, arXiv 2305.06500).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, frozen
    input projector     Q-Former: 32 queries and the instruction attend to each other; a linear map 768 -> D
    LLM backbone        Vicuna 1.1 (7B, 13B), or Flan-T5 (XL, XXL), frozen
    output projector    none: it answers in text
    modality generator  none

One stage on 13 data sets, each drawn by the square root of its size, starting from BLIP-2's Q-Former:

    mmjax train --config instructblip:vicuna_7b --workdir runs/instructblip --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.1 --config.processor.reader=/models/bert-base-uncased \
        --config.stages.instruct.data.path=/data/instructblip.jsonl

Trained weights: Salesforce/instructblip-vicuna-7b, -vicuna-13b, -flan-t5-xl, -flan-t5-xxl.
"""

from configs.parts import EVA_G_224, FLAN_T5_XL, FLAN_T5_XXL, LLAMA_7B, LLAMA_13B, qformer, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import PLAIN

SIZES = {
    "vicuna_7b": LLAMA_7B,
    "vicuna_13b": LLAMA_13B,
    "flan_t5_xl": FLAN_T5_XL,
    "flan_t5_xxl": FLAN_T5_XXL,
    "tiny": tiny_llm(LLAMA_7B),
}
ABOUT = {
    "title": "InstructBLIP",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14", "Q-Former that reads the instruction, linear map", "Vicuna or Flan-T5"),
    "verified": "logits, greedy tokens and export equal to transformers, at small sizes; tiny trained on batches with "
    "the Q-Former's instruction",
}


def get_config(arg: str = "vicuna_7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("instructblip", arg, SIZES), arg == "tiny"
    tower = tiny_tower(EVA_G_224, tiny)
    # BERT's words and one more, which says where a sentence begins.
    projector = qformer(tower, llm, tiny, vocab_size=272 if tiny else 30523)
    batch_size = 64 if "13b" in arg or "xxl" in arg else 128
    settings = {"weight_decay": 0.05, "warmup": 1000 / 60000}
    config = system(
        "instructblip",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": projector},
        stages={
            "instruct": stage(
                tiny, PROJECTORS, steps=60000, batch_size=batch_size, learning_rate=1e-5, **settings
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=PLAIN,
        lengths=(128, 256, 512),
    )
    # The words that the Q-Former reads are not the LLM's but BERT's.
    config["processor"]["reader"] = "bytes" if tiny else None
    return config
