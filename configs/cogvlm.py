r"""CogVLM: a visual expert in every layer of the LLM (Wang et al., 2023, arXiv 2311.03079).

    modality encoder    EVA2-CLIP-E at 490 px: 1225 patches (4.4B parameters)
    input projector     MLP 1792 -> 11008 -> 4096
    LLM backbone        Vicuna 1.5, 7B, frozen; tokens of images have maps of their own in every attention and MLP
                        (6.5B parameters), which start as a copy of the text's
    output projector    none: it answers in text
    modality generator  none

Where the text's maps are frozen, text alone is answered as before. What differs from the paper: its tower has its
norms behind the halves of a block, the one here before them; its MLP is gated; it gives all tokens of an image one
position; and its first stage runs at 224 px, all stages here at 490.

    mmjax train --config cogvlm:17b --workdir runs/cogvlm --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.stages.captions.data.path=/data/pairs.jsonl --config.stages.grounding.data.path=/data/boxes.jsonl \
        --config.stages.instruct.data.path=/data/chats.jsonl

Steps, batch sizes and learning rates as far as published; those of the instruction stage are this project's.
Trained weights: THUDM/cogvlm-chat-hf (in a format of their own, which is not read).
"""

from configs.parts import EVA2_E_490, LLAMA2_7B, Part, tiny_llm, tiny_tower
from configs.stages import ENCODERS, FUSION, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import QUESTION

SIZES = {"17b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "CogVLM",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA2-CLIP-E at 490 px", "MLP, 2 layers", "Vicuna 1.5 with a visual expert in every layer"),
    "verified": "17.6B parameters as published; the text model bit for bit at first; tiny trained",
}


def projector(tower: Part, llm: Part) -> Part:
    """The MLP between tower and LLM, as wide between its maps as the LLM's own."""
    return {"kind": "mlp", "in_width": tower["width"], "hidden": llm["mlp_width"], "width": llm["width"]}


def get_config(arg: str = "17b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("cogvlm", arg, SIZES), arg == "tiny"
    tower = tiny_tower(EVA2_E_490, tiny)
    settings = {"weight_decay": 0.05, "b2": 0.95}
    return system(
        "cogvlm",
        arg,
        {**llm, "fusion": {"kind": "visual_expert"}},
        encoders={"image": tower},
        projectors={"image": projector(tower, llm)},
        stages={
            "captions": stage(
                tiny, PROJECTORS, FUSION, steps=120000, batch_size=8192, learning_rate=1e-4, warmup=0.1, mode="plain",
                **settings,
            ),
            "grounding": stage(
                tiny, PROJECTORS, FUSION, steps=60000, batch_size=1024, learning_rate=1e-5, warmup=0.02, **settings
            ),
            # The tower at a tenth of the rate.
            "instruct": stage(
                tiny, (ENCODERS, "train", 0.1), PROJECTORS, FUSION, steps=6000, batch_size=640, learning_rate=1e-5,
                **settings,
            ),
        },
        images={"image": squeezed(tower["image_size"])},
        template=QUESTION,
        lengths=(1280, 1536, 2048),
    )  # fmt: skip
