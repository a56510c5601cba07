r"""Chameleon: text and images as one sequence of tokens from the start (Chameleon Team, 2024, arXiv 2405.09818).

    modality encoder    a VQ tokenizer, frozen: 8192 codes, 32 x 32 of them an image of 512 px
    input projector     none: codes are words of the vocabulary
    LLM backbone        a Llama of 7B (D 4096) with queries and keys normed head by head, from scratch
    output projector    none: codes are said as words are
    modality generator  the VQ tokenizer's decoder, which was never published

Images are codes wherever they stand, in what a user shows and in what the model writes; next-token cross-entropy is all
there is. Pre-training in two stages: 80% on text, pairs and interleaved pages, then 20% with half of that and better
data. Then instructions, whose answers alone are learned.

    mmjax train --config chameleon:7b --workdir runs/chameleon --config.mesh.fsdp=-1 \
        --config.processor.tokenizer=/models/chameleon-7b \
        --config.stages.pretrain.data.path=/data/interleaved.jsonl \
        --config.stages.anneal.data.path=/data/better.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

Or go on from the published weights with --config.from_pretrained=/models/chameleon-7b; which token is which code is
then what those say. A record that is one assistant's message is a document, learned whole; images are
{"type": "image", "path": FILE} among its parts. Their codes are made inside the training step, so data need no weights.

Batches of 2^23 tokens in texts of 4096, the rate, warm-up, decay of weights and the share of the stages are the
paper's; so are batch size and rate of the last stage. Its steps are those of 1.8 million samples. The rate falls
exponentially there, by a cosine here; dropout of a tenth and the loss that keeps logits small are left out. The 34B
model has norms behind its sublayers and is not here.

Trained weights: facebook/chameleon-7b. Their VQ tokenizer only reads: what the model writes stays codes.
"""

from configs.generators import code_images, small_codes
from configs.parts import LLAMA2_7B, Part, tiny_llm
from configs.stages import LLM, stage
from configs.system import choose, five, system
from configs.templates import separated

CHAMELEON_7B: Part = {**LLAMA2_7B, "vocab_size": 65536, "qk_norm": True, "head_norms": True}
# Gafni et al., 2022 ("Make-A-Scene").
VQ: Part = {
    "kind": "vq_autoencoder", "codes": 8192, "latent_channels": 256, "inner_channels": 256,
    "widths": (128, 128, 256, 256, 512), "decodes": False, "scale": 1.0, "image_size": 512,
}  # fmt: skip
BEGIN, END, ANSWER = "<racm3:break>", "<eoss>", "<reserved08706>"
# The published vocabulary's: the codes lie together, behind four control tokens.
IDS = {"first": 4, "placeholder": 8711, "begin": 8197, "tail": (8196,)}
# The byte tokenizer's, in the order in which they are added.
TINY_IDS = {"first": 272, "placeholder": 258, "begin": 259, "tail": (260,)}
SIZES = {"7b": CHAMELEON_7B, "tiny": {**tiny_llm(CHAMELEON_7B), "vocab_size": 288}}
ABOUT = {
    "title": "Chameleon",
    "inputs": ("text", "image"),
    "outputs": ("text", "image codes"),
    "parts": five("VQ tokenizer", "none: codes are words", "Llama with normed heads", "none", "none published"),
    "verified": "logits, greedy text, codes and export equal to transformers, loss of text and codes and its gradients "
    "to torch's, at small sizes; tiny trained through its stages",
}


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("chameleon", arg, SIZES), arg == "tiny"
    autoencoder = small_codes(VQ, tiny)
    side = autoencoder["image_size"]
    grid = (side // 2 ** (len(autoencoder["widths"]) - 1),) * 2
    settings = {"batch_size": 2048, "learning_rate": 1e-4, "weight_decay": 0.1, "b2": 0.95, "schedule": "cosine"}
    return system(
        "chameleon",
        arg,
        llm,
        encoders={},
        projectors={},
        stages={
            # 9.2T tokens.
            "pretrain": stage(tiny, LLM, steps=880000, warmup=4000 / 880000, **settings),
            "anneal": stage(tiny, LLM, steps=220000, warmup=0.0, **settings),
            "instruct": stage(
                tiny, LLM, steps=14000, **{**settings, "batch_size": 128, "learning_rate": 1e-5}
            ),
        },
        images={"image": code_images(side, BEGIN, END)},
        template=separated(ANSWER),
        lengths=(1024, 2048, 4096),
        media_tokens={},
        controls=(BEGIN, END, ANSWER),
        codes={
            "kind": "image_codes", "autoencoder": autoencoder, "width": llm["width"], "grid": grid, "port": "image",
            **(TINY_IDS if tiny else IDS),
        },
    )  # fmt: skip
