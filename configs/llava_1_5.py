r"""LLaVA-1.5: CLIP ViT-L/14-336, a two-layer MLP, Vicuna (Liu et al., 2023, arXiv 2310.03744).

    modality encoder    CLIP ViT-L/14 at 336 px: 576 patches of the last layer but one, frozen throughout
    input projector     MLP 1024 -> D -> D with GELU
    LLM backbone        Vicuna 1.5, 7B (D 4096) or 13B (D 5120)
    output projector    none: it answers in text
    modality generator  none

Train it as the paper did, on 558k captions and then 665k instructions (the JSON files and image folders that
the LLaVA repository names):

    mmjax train --config llava_1_5:7b --workdir runs/llava --config.mesh.fsdp=-1 \
        --config.init.backbone=/models/vicuna-7b-v1.5 \
        --config.init.encoders.image=/models/clip-vit-large-patch14-336 \
        --config.stages.pretrain.data.path=/data/blip_laion_cc_sbu_558k.json \
        --config.stages.finetune.data.path=/data/llava_v1_5_mix665k.json

Size "tiny" has random weights and a byte tokenizer, and trains on a CPU in seconds on any such file:

    mmjax train --config llava_1_5:tiny --workdir runs/tiny \
        --config.stages.pretrain.data.path=captions.json --config.stages.finetune.data.path=chats.json
"""

from mmjax.config import ConfigError, nearest

# What a size changes: the backbone, and how much of everything else a test can afford.
SIZES = {
    "7b": {"width": 4096, "num_layers": 32, "num_heads": 32, "head_dim": 128, "mlp_width": 11008},
    "13b": {"width": 5120, "num_layers": 40, "num_heads": 40, "head_dim": 128, "mlp_width": 13824},
    "tiny": {"width": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16, "mlp_width": 160},
}

CLIP_L = {"image_size": 336, "width": 1024, "num_layers": 24, "num_heads": 16, "mlp_width": 4096}
CLIP_TINY = {"image_size": 28, "width": 48, "num_layers": 3, "num_heads": 4, "mlp_width": 96}

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
# Vicuna's words: images first, each on a line of its own, then the text; an answer ends with </s>.
TEMPLATE = (
    "{% if add_bos %}{{ bos_token }}{% endif %}"
    '{% if messages[0][\'role\'] != \'system\' %}{{ "' + SYSTEM + ' " }}{% endif %}'
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}"
    "{% elif message['role'] != 'system' %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def get_config(arg: str = "7b") -> dict:
    """The system at one of its SIZES, as a nested dict for `mmjax.configuration`."""
    if arg not in SIZES:
        known = ", ".join(SIZES)
        raise ConfigError(f"llava_1_5 has no size {arg!r}.{nearest(arg, SIZES)} There are: {known}")
    tiny = arg == "tiny"
    vision, size = (CLIP_TINY, SIZES[arg]) if tiny else (CLIP_L, SIZES[arg])
    # Vicuna's 32000 tokens, then <image>, and room up to a multiple of 64. In "tiny" the 256 bytes, <s> and
    # </s> come first.
    vocab_size, image_token = (272, 258) if tiny else (32064, 32000)
    return {
        "name": f"llava_1_5:{arg}",
        "seed": 0,
        "dtype": "float32" if tiny else "bfloat16",
        "param_dtype": "float32",
        "remat": "none" if tiny else "full",
        "model": {
            "backbone": {
                **size,
                "kind": "decoder",
                "vocab_size": vocab_size,
                "num_kv_heads": size["num_heads"],
                "max_positions": 512 if tiny else 4096,
                "norm_eps": 1e-5,
            },
            "encoders": {
                "image": {
                    **vision,
                    "kind": "vit",
                    "patch_size": 14,
                    "feature_layers": (-2,),
                    "feature_strategy": "patches",
                },
            },
            "projectors": {
                "image": {
                    "kind": "mlp",
                    "in_width": vision["width"],
                    "hidden": size["width"],
                    "width": size["width"],
                },
            },
            "media_tokens": {"image": image_token},
        },
        # A checkpoint to go on from instead of the parts below.
        "from_pretrained": None,
        # Where pretrained parts come from: a directory in transformers' layout, or for the backbone a .gguf
        # file. A part with None starts from random weights.
        "init": {"backbone": None, "encoders": {"image": None}},
        "processor": {
            # None: the tokenizer of init.backbone. "bytes": one token for each byte.
            "tokenizer": "bytes" if tiny else None,
            "placeholders": {"image": "<image>"},
            "images": {
                "image": {
                    "size": {"shortest_edge": vision["image_size"]},
                    "crop_size": {"height": vision["image_size"], "width": vision["image_size"]},
                    "pad_to_square": True,
                },
            },
            "template": TEMPLATE,
            "lengths": (64, 128, 256, 512) if tiny else (640, 1024, 1536, 2048),
            "items": {"image": (0, 1)},
            "too_long": "truncate",
        },
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "stages": {
            "pretrain": {
                "steps": 10 if tiny else 2180,
                "batch_size": 4 if tiny else 256,
                "learning_rate": 1e-3,
                "warmup_steps": 1 if tiny else 65,
                "trainable": (("projectors/.*", "train"),),
                "log_every": 5 if tiny else 10,
                "checkpoint_every": 0 if tiny else 500,
                "panel_every": 0 if tiny else 500,
                # Captions without a template: the image, then the text.
                "data": {"path": None, "image_root": None, "mode": "plain", "workers": 0, "skip_budget": 100},
            },
            "finetune": {
                "steps": 10 if tiny else 5198,
                "batch_size": 4 if tiny else 128,
                "learning_rate": 2e-5,
                "warmup_steps": 1 if tiny else 156,
                "trainable": (("projectors/.*", "train"), ("backbone/.*", "train")),
                "log_every": 5 if tiny else 10,
                "checkpoint_every": 0 if tiny else 500,
                "panel_every": 0 if tiny else 500,
                "data": {"path": None, "image_root": None, "mode": "chat", "workers": 0, "skip_budget": 100},
            },
        },
    }
