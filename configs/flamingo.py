r"""Flamingo, in OpenFlamingo's sizes: images read between the layers of a frozen LLM (Alayrac et al., 2022,
arXiv 2204.14198; Awadalla et al., 2023, arXiv 2308.01390).

    modality encoder    CLIP ViT-L/14 at 224 px: 256 patches, frozen
    input projector     Perceiver resampler: 64 latents of width 1024, six layers
    LLM backbone        MPT, 1B or 7B, frozen; before every layer (1B) or every fourth (7B) a cross-attention to the
                        latents and an MLP, whose gates start at zero: at first it is the text model
    output projector    none: it answers in text
    modality generator  none

An image stands in the text as one token, whose embedding is trained with the resampler and the new layers. A token
reads the latents of the last image before it and of no other, so that records may hold several images: captions and
web pages, up to six images each.

    mmjax train --config flamingo:9b --workdir runs/flamingo --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/mpt-7b --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.pretrain.data.path="('/data/laion_pairs', '/data/mmc4')" \
        --config.stages.pretrain.data.weights="(0.67, 0.33)"

Learning rate, warm-up and decay are published, batch size and steps as far as the counts of samples say. MPT-1B
also normalises queries and keys, which is left out here, so the 3b size has random weights or another 1B MPT.
Trained weights: openflamingo/OpenFlamingo-9B-vitl-mpt7b (in a format of their own, which is not read).
"""

from configs.parts import CLIP_L_224, MPT_1B, MPT_7B, perceiver, tiny_llm, tiny_tower
from configs.stages import FUSION, PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import PLAIN

# The LLM, and before how many of its layers one reads images.
SIZES = {"9b": (MPT_7B, 4), "3b": (MPT_1B, 1), "tiny": (tiny_llm(MPT_7B), 1)}
ABOUT = {
    "title": "Flamingo (OpenFlamingo)",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "Perceiver resampler, 64 latents", "MPT with gated cross-attention"),
    "verified": "the text model bit for bit at first; who sees which image by brute force; tiny trained",
}


def get_config(arg: str = "9b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    (llm, every), tiny = choose("flamingo", arg, SIZES), arg == "tiny"
    tower = {**tiny_tower(CLIP_L_224, tiny), "feature_layers": (-1,)}
    sizes = {"num_heads": 8, "num_kv_heads": 8, "activation": "gelu", "output_map": False}
    config = system(
        "flamingo",
        arg,
        {
            **llm,
            "fusion": {
                "kind": "gated_cross_attention",
                "media_width": tower["width"],
                "every": every,
                "num_heads": 2 if tiny else 8,
                "head_dim": 8 if tiny else 64,
            },
        },
        encoders={"image": tower},
        projectors={"image": {**perceiver(tower, llm, tiny, **sizes), "width": tower["width"]}},
        stages={
            "pretrain": stage(
                tiny, PROJECTORS, FUSION, "backbone/embed_new/.*", steps=104000, batch_size=1728, learning_rate=1e-4,
                warmup=0.018, schedule="constant", weight_decay=0.1,
            ),
        },
        images={"image": square(tower["image_size"])},
        template=PLAIN,
        lengths=(32, 64, 128, 256),
        new_rows=True,
        inside=("image",),
        inside_sees="latest",
    )  # fmt: skip
    config["processor"]["items"] = {"image": (0, 1, 2, 4, 6)}
    config["stages"]["pretrain"]["data"]["weights"] = ()
    return config
