r"""CogAgent: screens at 1120 pixels, read by every layer through a narrow cross-attention (Hong et al., 2023,
arXiv 2312.08914).

    modality encoder    two views of one image: EVA2-CLIP-E at 224 px, and EVA2-CLIP-L at 1120 px (0.3B): 6400 features
    input projector     of the small view an MLP; the large view's features are read as they are
    LLM backbone        CogVLM's, Vicuna 1.5 7B with a visual expert in every layer, in which the small view stands as
                        256 tokens; between the halves of every layer a cross-attention of width 1024 to the large view
    output projector    none: it answers in text, places as numbers
    modality generator  none

A conversation shows an image once; it goes to both towers. What differs from the paper is what differs of `cogvlm`.

    mmjax train --config cogagent:18b --workdir runs/cogagent --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.stages.branch.data.path=/data/screens.jsonl --config.stages.pretrain.data.path=/data/screens.jsonl \
        --config.stages.instruct.data.path=/data/tasks.jsonl

The paper begins from CogVLM, freezes it for 20000 steps, then trains the experts too for 40000, then everything.
Trained weights: THUDM/cogagent-chat-hf (in a format of their own, which is not read).
"""

from configs.cogvlm import projector
from configs.parts import EVA2_E_490, EVA2_L_1120, LLAMA2_7B, tiny_llm, tiny_tower
from configs.stages import ENCODERS, FUSION, LLM, PROJECTORS, stage
from configs.system import choose, five, squeezed, system
from configs.templates import QUESTION

SIZES = {"18b": LLAMA2_7B, "tiny": tiny_llm(LLAMA2_7B)}
ABOUT = {
    "title": "CogAgent",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five(
        "EVA2-CLIP-E at 224 px, EVA2-CLIP-L at 1120 px",
        "MLP, 2 layers (224 px); none (1120 px)",
        "Vicuna 1.5 with a visual expert and a narrow cross-attention in every layer",
    ),
    "verified": "18.3B parameters as published; equal to a second implementation; tiny trained",
}


def get_config(arg: str = "18b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("cogagent", arg, SIZES), arg == "tiny"
    low = tiny_tower({**EVA2_E_490, "image_size": 224}, tiny)
    high = {**tiny_tower(EVA2_L_1120, tiny), "image_size": 56 if tiny else 1120}
    fusion = {
        "kind": "high_resolution",
        "media_width": high["width"],
        "num_heads": 2 if tiny else 32,
        "head_dim": 8 if tiny else 32,
    }
    branch = ("encoders/detail/.*", "backbone/fusion/blocks/cross/.*")
    return system(
        "cogagent",
        arg,
        {**llm, "fusion": fusion},
        encoders={"image": low, "detail": high},
        projectors={"image": projector(low, llm)},
        stages={
            "branch": stage(tiny, *branch, steps=20000, batch_size=4608, learning_rate=2e-5),
            "pretrain": stage(tiny, "encoders/detail/.*", FUSION, steps=40000, batch_size=4608, learning_rate=2e-5),
            "instruct": stage(tiny, ENCODERS, PROJECTORS, LLM, steps=10000, batch_size=1024, learning_rate=2e-5),
        },
        images={"image": squeezed(low["image_size"]), "detail": squeezed(high["image_size"])},
        template=QUESTION,
        lengths=(512, 1024, 2048),
        unmarked=("detail",),
        inside=("detail",),
        views={"detail": "image"},
    )
