r"""VILA: interleaved pre-training with the LLM unfrozen (Lin et al., 2023, arXiv 2312.07533).

    modality encoder    CLIP ViT-L/14 at 336 px, frozen
    input projector     a linear map 1024 -> D
    LLM backbone        Llama 2, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

The three findings are three stages: a projector of its own first; then the LLM is trained on interleaved documents
(25M of MMC4) and pairs (25M of COYO), since a frozen one does not learn in context; and text-only instructions are
mixed back into the last stage, here as a second path with its weight:

    mmjax train --config vila:7b --workdir runs/vila --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/Llama-2-7b-hf \
        --config.stages.align.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.interleaved.data.path=/data/mmc4_coyo.jsonl \
        --config.stages.instruct.data.path="('/data/vila_sft.jsonl', '/data/flan_1m.jsonl')" \
        --config.stages.instruct.data.weights="(0.5, 0.5)"

Trained weights: Efficient-Large-Model/VILA-7b and VILA-13b.
"""

from configs.parts import CLIP_L_336, LLAMA2_7B, LLAMA2_13B, linear, tiny_llm, tiny_tower
from configs.stages import LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import VICUNA

SIZES = {"7b": LLAMA2_7B, "13b": LLAMA2_13B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "VILA",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px", "linear map", "Llama 2"),
    "verified": "shapes and counts of every size; tiny trained, with what is frozen unchanged",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("vila", arg, SIZES), arg == "tiny"
    tower, both = tiny_tower(CLIP_L_336, tiny), (PROJECTORS, LLM)
    stages = {
        "align": stage(tiny, PROJECTORS, steps=2180, batch_size=256, learning_rate=1e-3, mode="plain"),
        "interleaved": stage(tiny, *both, steps=48828, batch_size=1024, learning_rate=5e-5, mode="plain"),
        "instruct": stage(tiny, *both, steps=8000, batch_size=128, learning_rate=2e-5),
    }
    stages["instruct"]["data"]["weights"] = ()
    config = system(
        "vila",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["width"], llm)},
        stages=stages,
        images={"image": square(tower["image_size"], pad_to_square=True)},
        template=VICUNA,
        lengths=(640, 1024, 2048, 4096),
    )
    config["processor"]["items"] = {"image": (0, 1, 2, 4, 6)}
    return config
