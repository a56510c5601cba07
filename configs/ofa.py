r"""OFA: every task is a sequence that a sequence answers (Wang et al., 2022, arXiv 2202.03052).

    modality encoder    the first three stages of ResNet-101 at 384 px: 24 x 24 features, trained
    input projector     a linear map 1024 -> D
    LLM backbone        BART (base 6 + 6 layers, large 12 + 12), trained: its encoder reads patches and the instruction,
                        its decoder writes the answer
    output projector    none: words and places; a box is four of a thousand words, <bin_0> <bin_1> <bin_2> <bin_3>
                        (`mmjax.data.boxes`, "ofa")
    modality generator  none

Instructions say the task ("what does the image describe?", 'which region does the text " cat " describe?'). The 8192
codes of images, with which OFA also writes pictures, have their rows in the vocabulary, but no tokenizer of images
makes them here. Further norms within its layers and its own positions are not here either: its weights are not read.
The large one's ResNet-152 is a 101 here. Give a tokenizer with the words <bin_0> to <bin_999>.

    mmjax train --config ofa:base --workdir runs/ofa --config.mesh.fsdp=-1 \
        --config.processor.tokenizer=/models/ofa-tokenizer \
        --config.init.encoders.image=/models/resnet-101 \
        --config.stages.pretrain.data.path="('/data/captions.jsonl', '/data/grounding.jsonl', '/data/vqa.jsonl')" \
        --config.stages.task.data.path=/data/vqa.jsonl
"""

from configs.parts import linear, tiny_llm
from configs.rare_parts import OFA_BASE, OFA_LARGE, RESNET_101_384, TINY_RESNET
from configs.stages import ENCODERS, LLM, PROJECTORS, stage
from configs.system import HALF, choose, five, squeezed, system
from configs.templates import PLAIN_READ

SIZES = {"base": OFA_BASE, "large": OFA_LARGE, "tiny": {**tiny_llm(OFA_BASE), "start_token": 256}}
ABOUT = {
    "title": "OFA",
    "inputs": ("text", "image"),
    "outputs": ("text", "box"),
    "parts": five("three stages of a ResNet-101, trained", "linear map", "BART"),
    "verified": "the spelling of boxes there and back; 576 tokens an image; tiny trained",
}


def get_config(arg: str = "base") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("ofa", arg, SIZES), arg == "tiny"
    tower, everything = TINY_RESNET if tiny else RESNET_101_384, (ENCODERS, PROJECTORS, LLM)
    settings = {"weight_decay": 0.01, "warmup": 0.01}
    return system(
        "ofa",
        arg,
        llm,
        encoders={"image": tower},
        projectors={"image": linear(tower["widths"][-1], llm)},
        stages={
            "pretrain": stage(tiny, *everything, steps=300000, batch_size=2048, learning_rate=2e-4, **settings),
            "task": stage(tiny, *everything, steps=20000, batch_size=512, learning_rate=5e-5, **settings),
        },
        images={"image": squeezed(tower["image_size"], **HALF)},
        template=PLAIN_READ,
        lengths=(640, 768, 1024),
    )
