r"""GILL: a frozen LLM that reads images, and draws or finds them (Koh et al., 2023, arXiv 2305.17216).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen: one vector
    input projector     a linear map 1024 -> 4 D: four tokens
    LLM backbone        OPT 6.7B (D 4096), frozen; rows of [IMG0] to [IMG7] trained
    output projector    GILLMapper, 77 learned queries in a small transformer; a linear map D -> 256 for finding
    modality generator  Stable Diffusion 1.5, frozen; or an image of a gallery; a classifier says which

Two stages. "align" learns captions both ways: given the image the LLM writes the caption, and given the caption its
eight [IMG] tokens find the image among those of the batch (InfoNCE) and are drawn to what Stable Diffusion's own text
encoder makes of the caption. Stable Diffusion itself is not run. "decide" trains the classifier alone, on captions of
which somebody has said whether drawing or finding gives the better image.

    mmjax train --config gill:6.7b --workdir runs/gill --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/opt-6.7b \
        --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.init.generators.image_out=/models/stable-diffusion-v1-5 \
        --config.init.generators.retrieve=/models/clip-vit-large-patch14 \
        --config.processor.images.image_out.captions=/models/stable-diffusion-v1-5/tokenizer \
        --config.stages.align.data.path=/data/cc3m.jsonl \
        --config.stages.decide.data.path=/data/parti_prompts_judged.jsonl

What an assistant shows is to be drawn and found: {"type": "image", "path": FILE, "caption": TEXT} behind the caption
among the parts of its answer; with "choice": "draw"
or "retrieve" where somebody has judged. All eight tokens are targets of the text, where the published code trains the
first alone and writes the others after it, as generating does here too. The published classifier also reads how near
the best image of the gallery is, and is a linear map with dropout of half. As far as published: learning rate, batch
size and steps of "align"; those of "decide" are small enough for the 1600 prompts of PartiPrompts.

Draw and find with `model.generate(..., galleries={"retrieve": model.gallery("retrieve", "photos/")})`, or

    mmjax generate runs/gill/model -i in.jsonl -o out.jsonl --gallery retrieve=photos

Trained weights: kohjingyu/gill (the maps and rows as a torch file).
"""

from configs.generators import CLIP_L_TEXT, STABLE_DIFFUSION_1_5, queries, small, small_text, targets
from configs.parts import OPT_6_7B, tiny_llm, tiny_tower
from configs.retrieval import CLIP_L_CLASS, class_tokens, finder, finds
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import drawn, turns

SIZES = {"6.7b": OPT_6_7B, "tiny": tiny_llm(OPT_6_7B)}
ABOUT = {
    "title": "GILL",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five(
        "CLIP ViT-L/14 at 224 px: one vector",
        "linear map to 4 tokens",
        "OPT",
        "learned queries (GILLMapper); linear map",
        "Stable Diffusion 1.5, or an image of a gallery",
    ),
    "verified": "shapes and counts; tiny trained through both stages; output projector, contrastive loss and its "
    "gradients equal to torch's, denoiser and autoencoder to diffusers'",
}
# One signal for all three.
PORTS = ("image_out", "retrieve", "decision")
# The rows behind the LLM's own vocabulary.
NEW_ROWS = "backbone/(embed_new|lm_head_new)/.*"


def get_config(arg: str = "6.7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("gill", arg, SIZES), arg == "tiny"
    tower, diffusion = tiny_tower(CLIP_L_CLASS, tiny), small(STABLE_DIFFUSION_1_5, tiny)
    find, to_found = finder(tower, llm, tiny)
    signals = dict.fromkeys(PORTS, tuple(f"[IMG{number}]" for number in range(2 if tiny else 8)))
    return system(
        "gill",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": class_tokens(tower, llm, 4)},
        stages={
            "align": stage(
                tiny, PROJECTORS, NEW_ROWS, "output_projectors/(image_out|retrieve)/.*", "generators/retrieve/.*",
                steps=20000, batch_size=200, learning_rate=1e-3, b2=0.95,
                loss_weights={"text": 1.0, "alignment": 1.0, "retrieval": 1.0, "diffusion": 0.0},
            ),
            "decide": stage(
                tiny, "(output_projectors|generators)/decision/.*", steps=1000, batch_size=64, learning_rate=1e-3,
                loss_weights={"text": 0.0, "alignment": 0.0, "retrieval": 0.0, "diffusion": 0.0, "decision": 1.0},
            ),
        },
        images={
            "image": square(tower["image_size"]),
            "image_out": targets("ImageTargets", (8, 8) if tiny else (512, 512), captions=None),
            "retrieve": finds(tower),
            "decision": {"target_processor_type": "DecisionTargets", "of": "image_out"},
        },
        template=turns("Q:", "A:", item=drawn(signals), in_order=True),
        lengths=(64, 128, 256),
        new_rows=True,
        generators={"image_out": diffusion, "retrieve": find, "decision": {"kind": "decision", "width": 256}},
        output_projectors={
            "image_out": queries(llm, diffusion, 77, tiny),
            "retrieve": to_found,
            "decision": {"kind": "linear_output", "in_width": llm["width"], "width": 256, "pooled": "mean"},
        },
        signals=signals,
        generator_encoders={"image_out": small_text(CLIP_L_TEXT, tiny), "retrieve": tower},
    )  # fmt: skip
