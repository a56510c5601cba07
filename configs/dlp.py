r"""DLP: BLIP-2 whose Q-Former learns from a P-Former's prompts (Jian et al., 2023, arXiv 2307.07063).

    modality encoder    EVA-CLIP ViT-g/14 at 224 px, frozen
    input projector     Q-Former: 32 queries, 12 layers, and a linear map 768 -> D; beside it, while it is trained,
                        the P-Former: BERT-base, which says for a caption the 32 tokens that make the LLM write it
    LLM backbone        OPT (2.7B, 6.7B), frozen
    output projector    none: it answers in text
    modality generator  none

First the P-Former is trained with captions alone, then the Q-Former is drawn to its prompts:

    mmjax train --config dlp:opt_2.7b --workdir runs/dlp --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/opt-2.7b \
        --config.stages.prompts.data.path=/data/captions_12m.jsonl \
        --config.stages.generate.data.path=/data/images_4m.jsonl

The P-Former reads the LLM's own tokens here, in the paper those of BERT. The stage between the two, BLIP-2's first one
(contrastive, matching, and generative losses without an LLM, with the prompts beside them), is not among the stages.
Batches, rates and the weight of 100 are those of the authors' runs; their steps follow from epochs, 5 of about 12M
captions and 10 of about 4M images.
"""

from typing import Any

from configs import blip_2
from configs.parts import OPT_2_7B, OPT_6_7B, tiny_llm
from configs.stages import stage
from configs.system import choose, five

SIZES = {"opt_2.7b": OPT_2_7B, "opt_6.7b": OPT_6_7B, "tiny": tiny_llm(OPT_2_7B)}
ABOUT = {
    "title": "DLP",
    "inputs": ("text", "image"),
    "outputs": ("text",),
    "parts": five("EVA-CLIP ViT-g/14", "Q-Former of 32 queries beside a P-Former", "OPT"),
    "verified": "both losses and their gradients equal to torch with transformers' BERT and Llama, at small sizes; "
    "tiny trained",
}


def get_config(arg: str = "opt_2.7b") -> dict[str, Any]:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("dlp", arg, SIZES), arg == "tiny"
    config = blip_2.get_config(arg)
    reader = config["model"]["projectors"]["image"]
    sizes = {name: reader[name] for name in ("query_width", "num_layers", "num_heads", "mlp_width") if name in reader}
    prompter = {"vocab_size": llm["vocab_size"], "num_prompts": reader.get("num_queries", 32), **sizes}
    config["model"]["projectors"]["image"] = {"kind": "prompted", "reader": reader, "prompter": prompter}
    settings = {"batch_size": 384, "learning_rate": 1e-4, "final_fraction": 0.1, "weight_decay": 0.05, "mode": "plain"}
    train = "projectors/image/{}/.*"
    return {
        **config,
        "name": f"dlp:{arg}",
        "stages": {
            "prompts": stage(tiny, train.format("prompter"), steps=156000, warmup=2000 / 156000, **settings),
            "generate": stage(
                tiny,
                train.format("reader"),
                steps=104000,
                warmup=2000 / 104000,
                loss_weights={"align": 100.0},
                **settings,
            ),
        },
    }
