r"""FROMAGe: a frozen LLM that reads images and finds them (Koh et al., 2023, arXiv 2301.13823).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: one vector
    input projector     a linear map 1024 -> D: one token
    LLM backbone        OPT 6.7B (D 4096), frozen; the row of [RET] trained
    output projector    a linear map D -> 256 of the state at [RET]
    modality generator  none; images are found in a gallery: a linear map 1024 -> 256 of CLIP's vectors

One stage, on captions both ways: given the image the LLM writes the caption, and given the caption [RET] finds the
image among those of the batch, by InfoNCE in both directions.

    mmjax train --config fromage:6.7b --workdir runs/fromage --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/opt-6.7b \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.init.generators.image_out=/models/clip-vit-large-patch14 \
        --config.stages.ground.data.path=/data/cc3m.jsonl

What an assistant shows is to be found: {"type": "image", "path": FILE} behind the caption among the parts of its
answer. The contrast is one of a micro-batch: give it
rows rather than steps to accumulate. The published captions stand alone; here a turn begins with Q: or A:, as in the
paper's dialogues. Its captions that are joined two by two are not made here. Learning rate, batch size and warm-up are
the paper's as far as published, the steps about its one epoch.

Find with `model.generate(..., galleries={"image_out": model.gallery("image_out", "photos/")})`, or

    mmjax generate runs/fromage/model -i in.jsonl -o out.jsonl --gallery image_out=photos

Trained weights: kohjingyu/fromage (the maps and the row of [RET] as a torch file).
"""

from configs.parts import OPT_6_7B, tiny_llm, tiny_tower
from configs.retrieval import CLIP_L_CLASS, class_tokens, finder, finds
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import drawn, turns

SIZES = {"6.7b": OPT_6_7B, "tiny": tiny_llm(OPT_6_7B)}
ABOUT = {
    "title": "FROMAGe",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "CLIP ViT-L/14 at 224 px: one vector", "linear map", "OPT", "linear map", "none: images are found in a gallery"
    ),
    "verified": "shapes and counts; tiny trained; the contrastive loss and its gradients equal to torch's",
}
SIGNALS = {"image_out": ("[RET]",)}
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"


def get_config(arg: str = "6.7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("fromage", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_CLASS, tiny)
    generator, output = finder(tower, llm, tiny)
    return system(
        "fromage",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": class_tokens(tower, llm, 1)},
        stages={
            "ground": stage(
                tiny, PROJECTORS, NEW_ROWS, "output_projectors/.*", "generators/.*", steps=18000, batch_size=180,
                learning_rate=3e-4, warmup=100 / 18000, b2=0.95, loss_weights={"text": 1.0, "retrieval": 1.0},
            ),
        },
        images={"image": square(tower["image_size"]), "image_out": finds(tower)},
        template=turns("Q:", "A:", item=drawn(SIGNALS), in_order=True),
        lengths=(32, 64, 128),
        new_rows=True,
        generators={"image_out": generator},
        output_projectors={"image_out": output},
        signals=SIGNALS,
        generator_encoders={"image_out": tower},
    )  # fmt: skip
