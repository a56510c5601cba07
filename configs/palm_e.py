r"""PaLM-E: what a robot sees and what its sensors say, among the words of a plan (Driess et al., 2023, arXiv
2303.03378).

    modality encoder    ViT-4B (or 22B) at 224 px: 256 features, trained; a vector of states (positions, colours, speeds
                        of objects) as it is
    input projector     images: a linear map; states: an MLP from the vector to one token
    LLM backbone        PaLM (8B, 62B), trained or frozen
    output projector    none: its plans are text, for policies that know such words
    modality generator  none

A state may stand anywhere among the words, like an image: a part of a message `{"type": "state", "state": [...]}`, 16
numbers here, scaled by whoever makes it. Neither PaLM nor its ViTs are public, so that all sizes start from random
weights or from other LLMs; learning rates and steps are not published in full.

    mmjax train --config palm_e:12b --workdir runs/palm_e --config.mesh.fsdp=-1 \
        --config.stages.plan.data.path=/data/robots_and_web.jsonl
"""

from configs.parts import LLAMA_7B, linear, mlp, tiny_llm, tiny_tower
from configs.rare_parts import PALM_8B, PALM_62B, VIT_4B
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import turns

VIT_22B = {**VIT_4B, "width": 6144, "num_layers": 48, "num_heads": 48, "mlp_width": 24576}
# The LLM, the tower; an open one of the same idea.
SIZES = {
    "12b": (PALM_8B, VIT_4B),
    "84b": (PALM_62B, VIT_22B),
    "llama_7b": (LLAMA_7B, VIT_4B),
    "tiny": (tiny_llm(PALM_8B), VIT_4B),
}
ABOUT = {
    "title": "PaLM-E",
    "inputs": ("text", "image", "state"),
    "outputs": ("text",),
    "parts": five("ViT-4B, trained; states as they are", "linear map; MLP of a state", "PaLM"),
    "verified": "a state's token stands where its part stands and is the MLP of its numbers; 84B parameters as "
    "published; tiny trained",
}
NUMBERS = 16


def get_config(arg: str = "12b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, tower), tiny = choose("palm_e", arg, SIZES), arg == "tiny"
    tower = tiny_tower(tower, tiny)
    config = system(
        "palm_e",
        arg,
        llm,
        encoders={"image": tower, "state": {"kind": "vector", "size": NUMBERS}},
        projectors={"image": linear(tower["width"], llm), "state": mlp(NUMBERS, llm)},
        stages={
            "plan": stage(tiny, ENCODERS, PROJECTORS, LLM, steps=50000, batch_size=128, learning_rate=1e-5),
        },
        images={
            "image": squeezed(tower["image_size"], **HALF),
            "state": {"vector_processor_type": "VectorProcessor", "size": NUMBERS},
        },
        template=turns("Q:", "A:", item="'<' + part['type'] + '> '", in_order=True),
        lengths=(320, 512, 1024),
    )
    config["processor"]["items"]["state"] = (0, 1, 2, 4, 8)
    return config
