r"""LLaVA-Med: LLaVA taught biomedicine in a day (Li et al., 2023, arXiv 2306.00890).

    modality encoder    CLIP ViT-L/14 (224 px; 336 px in version 1.5), frozen
    input projector     a linear map; in version 1.5 an MLP
    LLM backbone        Vicuna 7B; Mistral 7B in version 1.5
    output projector    none: it answers in text
    modality generator  none

A curriculum of two stages on top of LLaVA, whose weights `from_pretrained` names: words of the domain from 600k
figures and captions of PubMed Central, then 60k conversations on them, thrice:

    mmjax train --config llava_med:7b --workdir runs/med --config.mesh.fsdp=-1 \
        --config.from_pretrained=/models/llava-7b \
        --config.stages.align.data.path=/data/llava_med_alignment_500k.json \
        --config.stages.instruct.data.path=/data/llava_med_instruct_60k.json

Trained weights: microsoft/llava-med-v1.5-mistral-7b.
"""

from configs.parts import CLIP_L_224, CLIP_L_336, LLAMA_7B, MISTRAL_7B, linear, mlp, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import LLAMA_2, VICUNA

SIZES = {
    "7b": (LLAMA_7B, CLIP_L_224, linear, VICUNA),
    "v1.5_7b": (MISTRAL_7B, CLIP_L_336, mlp, LLAMA_2),
    "tiny": (tiny_llm(MISTRAL_7B), CLIP_L_336, mlp, LLAMA_2),
}
ABOUT = {
    "title": "LLaVA-Med",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14", "linear map, or MLP of 2 layers", "Vicuna, or Mistral"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, tower, projector, template), tiny = choose("llava_med", arg, SIZES), arg == "tiny"
    tower = tiny_tower(tower, tiny)
    return system(
        "llava_med",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": projector(tower["width"], llm)},
        stages={
            "align": stage(tiny, PROJECTORS, steps=4688, batch_size=128, learning_rate=2e-3),
            "instruct": stage(tiny, PROJECTORS, LLM, steps=1406, batch_size=128, learning_rate=2e-5),
        },
        images={"image": square(tower["image_size"])},
        template=template,
        lengths=(640, 1024, 1536, 2048),
    )
