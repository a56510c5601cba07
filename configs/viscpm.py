r"""VisCPM: another language through English pivots (Hu et al., 2023, "Large multilingual models pivot zero-shot
multimodal learning across languages", arXiv 2308.12038).

    modality encoder    BEiT-3 large at 448 px, trained
    input projector     64 queries (Muffin) and a linear map to D
    LLM backbone        CPM-Bee 10B, which knows Chinese and English; frozen at first
    output projector    none: it answers in text
    modality generator  none (VisCPM-Paint, its other half, makes images)

Pictures are learned from ENGLISH pairs alone; that the LLM speaks both languages carries it over. Instructions are then
the English ones and their translations into Chinese, mixed by `data.weights`, so that it answers in the language it is
asked in. In Muffin the queries go through BEiT-3's own layers; here a Perceiver reads its features. Weights of BEiT-3
and CPM-Bee are not read. Steps and rates are as far as published.

    mmjax train --config viscpm:10b --workdir runs/viscpm --config.mesh.fsdp=-1 \
        --config.stages.pretrain.data.path=/data/pairs_en.jsonl \
        --config.stages.instruct.data.path="('/data/llava_en.jsonl', '/data/llava_zh.jsonl')"
"""

from configs.parts import perceiver, tiny_llm, tiny_tower
from configs.rare_parts import BEIT_3_L_448, CPM_BEE_10B
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import turns

SIZES = {"10b": CPM_BEE_10B, "tiny": tiny_llm(CPM_BEE_10B)}
ABOUT = {
    "title": "VisCPM-Chat",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("BEiT-3 large at 448 px, trained", "64 queries, linear map", "CPM-Bee 10B"),
    "verified": "languages mixed in the ratio of the weights; tiny trained, with the LLM frozen at first",
}


def get_config(arg: str = "10b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("viscpm", arg, SIZES), arg == "tiny"
    tower = tiny_tower(BEIT_3_L_448, tiny)
    config = system(
        "viscpm",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": perceiver(tower, llm, tiny, num_layers=1)},
        stages={
            "pretrain": stage(
                tiny, ENCODERS, PROJECTORS, steps=180000, batch_size=768, learning_rate=1e-5, mode="plain"
            ),
            "instruct": stage(
                tiny, ENCODERS, PROJECTORS, LLM, steps=80000, batch_size=64, learning_rate=5e-6,
            ),
        },
        images={"image": squeezed(tower["image_size"], **HALF)},
        template=turns("User:", "AI:", between="\\n"),
        lengths=(128, 256, 512, 1024),
    )  # fmt: skip
    return config
