r"""MM1: which connector, how many tokens (McKinzie et al., 2024, arXiv 2403.09611).

    modality encoder    CLIP ViT-L/14 at 336 px, trained too
    input projector     average pooling, attention pooling, or the C-Abstractor; 64 or 144 tokens an image
    LLM backbone        a decoder of 1.2B parameters beside its embeddings: 24 layers of width 2048
    output projector    none: it answers in text
    modality generator  none

These are the sizes of the paper's ablation, a grid of connector x tokens with everything else the same; its answer
is that tokens and resolution matter, and the kind of connector hardly. Every pair is a size, so the grid is six runs:

    mmjax train --config mm1:abstractor_144 --workdir runs/abstractor_144 --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llm-1.2b \
        --config.stages.pretrain.data.path="('/data/captions', '/data/interleaved', '/data/text')" \
        --config.stages.pretrain.data.weights="(0.45, 0.45, 0.1)"

Trained weights: none. The paper says the LLM's parameters, not its shape: 12 D^2 numbers a layer give both counts.
"""

from configs.parts import CLIP_L_336, PLAIN_1_3B, grid_of, tiny_llm, tiny_tower
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import PLAIN

CONNECTORS = ("abstractor", "attention", "average")
GRIDS = {"144": (12, 12), "64": (8, 8)}
SIZES = {
    **{f"{name}_{count}": (name, GRIDS[count]) for count in GRIDS for name in CONNECTORS},
    "tiny": ("abstractor", (2, 1)),
}
ABOUT = {
    "title": "MM1 (ablation of connectors)",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 336 px", "average pooling, attention pooling or C-Abstractor", "a decoder of 1.2B"),
    "verified": "64 and 144 tokens of every connector; tiny trained",
}


def get_config(arg: str = "abstractor_144") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (connector, out_grid), tiny = choose("mm1", arg, SIZES), arg == "tiny"
    llm, tower = tiny_llm(PLAIN_1_3B) if tiny else PLAIN_1_3B, tiny_tower(CLIP_L_336, tiny)
    shared = {"in_width": tower["width"], "width": llm["width"], "grid": grid_of(tower)}
    projectors = {
        "abstractor": {"kind": "abstractor", **shared, "out_grid": out_grid, "hidden": 48 if tiny else 1024},
        "attention": {"kind": "resampler", **shared, "query_grid": out_grid, "num_heads": 16},
        "average": {"kind": "pool", **shared, "out_grid": out_grid, "pool_first": True},
    }
    everything = (ENCODERS, PROJECTORS, LLM)
    config = system(
        "mm1",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": projectors[connector]},
        stages={
            "pretrain": stage(
                tiny, *everything, steps=200000, batch_size=512, learning_rate=8.6e-5, warmup=0.01, mode="plain"
            ),
        },
        images={"image": square(tower["image_size"], pad_to_square=True)},
        template=PLAIN,
        lengths=(256, 512, 1024, 4096),
    )
    config["stages"]["pretrain"]["data"]["weights"] = ()
    return config
