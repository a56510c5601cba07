r"""Emu3: next-token prediction over text and the codes of images alike (Wang et al., 2024, arXiv 2409.18869).

    modality encoder    a VQ tokenizer, frozen: 32768 codes, one for 8 x 8 pixels (of 4 frames, in videos)
    input projector     none: codes are words of the vocabulary
    LLM backbone        a Llama of 8B (D 4096), from scratch
    output projector    none: codes are said as words are
    modality generator  the VQ tokenizer's decoder

An image stands in the text as its height and width in codes, as words, and its codes row by row, a token behind each
row, whether a user shows it or the model writes it. Codes weigh half of what words do in the loss. Three stages:
"pretrain" on text and pairs, "quality" on captions and fine images, where only images are learned (Emu3-Gen), and
"instruct" on questions (Emu3-Chat); the published models are two, each behind the first stage.

    mmjax train --config emu3:8b --workdir runs/emu3 --config.mesh.fsdp=-1 \
        --config.processor.tokenizer=/models/Emu3-Chat-hf \
        --config.stages.pretrain.data.path=/data/pairs.jsonl \
        --config.stages.quality.data.path=/data/fine_images.jsonl \
        --config.stages.instruct.data.path=/data/instruct.jsonl

Or go on from published weights with --config.from_pretrained=/models/Emu3-Gen-hf. A record that is one assistant's
message is a document, learned whole; {"type": "image", "path": FILE} among the parts of a message is an image. Codes
are made inside the training step, so data need no weights. Images are squares of 512 px, the paper's average; for the
720 px of its second stage set --config.processor.images.image.height and width, and --config.model.codes.grid.

Rate, schedule, weight of codes and the context of 5120 tokens are the paper's; steps and batch sizes were not
published. Videos, whose codes its tokenizer has (`mmjax.media_model`), are not part of this config, nor is the
preference tuning of Emu3-Gen.

Trained weights: BAAI/Emu3-Chat-hf, BAAI/Emu3-Gen-hf.
"""

from configs.generators import code_images, small_codes
from configs.parts import LLAMA2_7B, Part, tiny_llm
from configs.stages import LLM, stage
from configs.system import choose, five, system
from configs.templates import BARE, documents, turns

EMU3_8B: Part = {
    **LLAMA2_7B, "vocab_size": 184622, "num_kv_heads": 8, "mlp_width": 14336, "rope_theta": 1e6, "max_positions": 9216,
}  # fmt: skip
# Zheng et al., 2022 ("MoVQ"), with time.
MOVQ: Part = {
    "kind": "video_vq_autoencoder",
    "maps": {
        "kind": "vq_autoencoder", "codes": 32768, "latent_channels": 4, "inner_channels": 4,
        "widths": (256, 512, 512, 1024), "attention_levels": (3,), "spatial_norm": True, "scale": 1.0,
        "image_size": 512,
    },
    "frames": 4,
}  # fmt: skip
# As they are spelt in the published vocabulary, in the order of TINY_IDS behind the placeholder.
START, CODES, ROW_END, FRAME_END, END = (
    "<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>",
)  # fmt: skip
IDS = {"first": 151854, "placeholder": 151646, "begin": 151851, "row_end": 151846, "tail": (151847, 151853, 151850)}
# The last token of `tail` is the end of the text.
TINY_IDS = {"first": 272, "placeholder": 258, "begin": 260, "row_end": 261, "tail": (262, 263, 257)}
SIZES = {"8b": EMU3_8B, "tiny": {**tiny_llm(EMU3_8B), "vocab_size": 288}}
ABOUT = {
    "title": "Emu3",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": five("VQ tokenizer (MoVQ)", "none: codes are words", "Llama", "none", "VQ tokenizer's decoder"),
    "verified": "logits, codes drawn with guidance, their pixels, export, the loss of text and codes and its gradients "
    "equal to transformers, at small sizes; tiny trained through its stages",
}


def get_config(arg: str = "8b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    llm, tiny = choose("emu3", arg, SIZES), arg == "tiny"
    autoencoder = small_codes(MOVQ, tiny)
    side = autoencoder["maps"]["image_size"]
    grid = (side // 2 ** (len(autoencoder["maps"]["widths"]) - 1),) * 2
    settings = {"batch_size": 1024, "learning_rate": 5e-5, "b2": 0.95, "schedule": "cosine"}
    before = f"{START}{{height}}*{{width}}{CODES}"
    return system(
        "emu3",
        arg,
        llm,
        encoders={},
        projectors={},
        stages={
            "pretrain": stage(tiny, LLM, steps=500000, **settings),
            "quality": stage(tiny, LLM, steps=20000, **{**settings, "batch_size": 256}),
            "instruct": stage(tiny, LLM, steps=20000, **{**settings, "batch_size": 256, "learning_rate": 1e-5}),
        },
        images={"image": code_images(side, before, f"{FRAME_END}{END}", weight=0.5)},
        template=documents(turns("USER:", "ASSISTANT:", "You are a helpful assistant.", item=BARE, in_order=True)),
        lengths=(1024, 5120, 9216),
        media_tokens={},
        controls=(START, CODES, ROW_END, FRAME_END, END),
        codes={
            "kind": "image_codes", "autoencoder": autoencoder, "width": llm["width"], "grid": grid, "port": "image",
            **(TINY_IDS if tiny else IDS),
        },
    )  # fmt: skip
