r"""LLaMA-Adapter V2: images read in the first layers, prompts in the last, a bias and a scale on every linear map
(Gao et al., 2023, arXiv 2304.15010).

    modality encoder    CLIP ViT-L/14 at 224 px, frozen
    input projector     Perceiver: ten latents that read the patches, and a linear map
    LLM backbone        LLaMA 7B, frozen but for its norms; its first layer reads the latents, its last 31 read ten
                        prompts each, behind gates that start at zero; every linear map has a bias and a scale
    output projector    none: it answers in text
    modality generator  none

Captions train what reads images, instructions of text alone train prompts, biases, scales and norms: the two groups
of parameters do not meet in one layer, so that they do not disturb each other. 14M numbers beside the projector.

    mmjax train --config llama_adapter_v2:7b --workdir runs/llama_adapter_v2 --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/llama-7b --config.init.encoders.image=/models/clip-vit-large-patch14 \
        --config.stages.captions.data.path=/data/coco.json --config.stages.instruct.data.path=/data/gpt4_52k.json

The paper mixes both kinds of data in each batch and lets each train its own group; here they are two stages. Its
learning rates and steps are not all published; those below are this project's.
"""

from configs.parts import CLIP_L_224, LLAMA_7B, perceiver, tiny_llm, tiny_tower
from configs.stages import PROJECTORS, stage
from configs.system import choose, five, square, system
from configs.templates import ALPACA

SIZES = {"7b": LLAMA_7B, "tiny": tiny_llm(LLAMA_7B)}
ABOUT = {
    "title": "LLaMA-Adapter V2",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("CLIP ViT-L/14 at 224 px", "Perceiver, 10 latents", "LLaMA with early reading, prompts, tuned maps"),
    "verified": "equal to a second implementation; the text model bit for bit at first; tiny trained",
}
READS_IMAGES = (PROJECTORS, "backbone/fusion/early/.*")
FOLLOWS = ("backbone/fusion/(blocks|late)/.*", "backbone/(blocks/.*norm|norm)/.*")


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("llama_adapter_v2", arg, SIZES), arg == "tiny"
    tower = tiny_tower(CLIP_L_224, tiny)
    fusion = {
        "kind": "adapter_prompts_v2",
        "num_prompts": 3 if tiny else 10,
        "layers": 1 if tiny else 31,
        "media_layers": 1,
    }
    settings = {"batch_size": 64, "warmup": 0.1, "weight_decay": 0.02}
    return system(
        "llama_adapter_v2",
        arg,
        {**llm, "fusion": fusion},
        encoders={"image": tower},
        projectors={"image": perceiver(tower, llm, tiny, num_latents=10, num_layers=8)},
        stages={
            "captions": stage(tiny, *READS_IMAGES, steps=26000, learning_rate=1e-3, **settings),
            "instruct": stage(tiny, *FOLLOWS, steps=4060, learning_rate=1e-3, **settings),
        },
        images={"image": square(tower["image_size"])},
        template=ALPACA,
        lengths=(128, 256, 512),
        unmarked=("image",),
        inside=("image",),
    )
