"""The demo: SmolLM2-135M-Instruct learns to see emoji, on two CPU cores in minutes.

    make demo
    python -m mmjax.recipes.demo --workdir runs/demo
    python -m mmjax.recipes.demo --workdir runs/short --short            # a few steps, to see that it works

    modality encoder    EfficientNet-Lite0 (ImageNet), frozen: 5 pooled features of all its stages
    input projector     2 + 4 tokens: linear maps that start from ridge regressions, and a small MLP
    LLM backbone        SmolLM2-135M-Instruct, frozen in stage 1, with LoRA in stage 2
    output projector    4 new signal tokens to a sketch (a linear map that starts from a ridge regression) and 4 tokens
    modality generator  a diffusion MLP over 8 x 8 pixel patches in their principal components

Stage "pretrain" (MM-PT) teaches the projector to complete "An emoji of <image>, an emoji of blue frog.";
stage "instruct" (MM-IT) teaches projector and LoRA to answer four questions about each picture. Then the LLM stays
as it is: the rows of the signal tokens, when to draw, are a regression on its states; stage "draw" trains output
projector and generator. The settings were chosen on the "develop" pairs of colour and object; the score is taken
on the "final" ones.
"""

from mmjax.config import ConfigError, nearest

SIZES = ("full", "short")
ABOUT = {
    "title": "Demo",
    "inputs": ("text", "image"),
    "outputs": ("text", "image"),
    "parts": {
        "modality encoder": "EfficientNet-Lite0",
        "input projector": "linear maps and an MLP on pooled features",
        "LLM backbone": "SmolLM2-135M-Instruct",
        "output projector": "linear, a sketch and tokens of 4 signal tokens",
        "modality generator": "a diffusion MLP (after MAR's) over patches",
    },
    "run": "make demo, or mmjax demo --workdir DIR",
    "verified": "trained and scored on held-out images by every run: demo_scores.json, report.html",
}

# SmolLM2's words without the system message that its own template puts first, for which every picture would
# pay again.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Constants of the projector: what inputs are standardised with, and the size of a word.
CONSTANTS = ("projectors/image/(mean|std|scale)", "freeze")

GOALS = (
    ("pretrain", "pairs", "exact", "value", 0.90, 1.0),
    ("instruct", "pairs", "exact", "value", 0.85, 1.0),
    ("instruct", "pairs", "colour", "value", 0.90, 1.0),
    ("instruct", "pairs", "object", "value", 0.90, 1.0),
    ("instruct", "pairs", "yes/no, object", "value", 0.85, 1.0),
    ("instruct", "pairs", "yes/no, colour", "value", 0.85, 1.0),
    ("instruct", "pairs", "exact", "blind", 0.0, 0.03),
    ("instruct", "pairs", "colour", "blind", 0.0, 0.20),
    ("instruct", "pairs", "yes/no, object", "blind", 0.42, 0.58),
    ("instruct", "pairs", "yes/no, colour", "blind", 0.42, 0.58),
    ("instruct", "nouns", "group of 8", "value", 0.60, 1.0),
    ("instruct", "nouns", "yes/no", "value", 0.62, 1.0),
    ("draw", "pairs", "right picture first of 100", "value", 0.90, 1.0),
    ("draw", "pairs", "colour of 8", "value", 0.90, 1.0),
    ("draw", "trained", "right picture among the first 10 of 100", "value", 0.80, 1.0),
)


def get_config(arg: str = "full") -> dict:
    """The demo, or with "short" a version of a few steps on a few pictures."""
    if arg not in SIZES:
        raise ConfigError(f"demo has no size {arg!r}.{nearest(arg, SIZES)} There are: {', '.join(SIZES)}")
    short = arg == "short"
    return {
        "name": f"demo:{arg}",
        "seed": 0,
        "encoder": {
            "kind": "efficientnet",
            "image_size": 64,
            "resolution": 224,
            "pool": "global+2x2",
        },
        "projector": {
            "kind": "pooled",
            "global_heads": 2,
            "num_local": 4,
            "hidden": 1024,
            "dropout": 0.1,
        },
        # Lambda of the ridge regressions that the projector starts from.
        "ridge_penalty": 0.4,
        "processor": {
            "template": TEMPLATE,
            # A token of the vocabulary that no text here uses; it only marks where an image stands.
            "media_token": "<file_sep>",
            "image_mean": (127 / 255, 127 / 255, 127 / 255),
            "image_std": (128 / 255, 128 / 255, 128 / 255),
            # Sequence lengths that programs are compiled for outside training.
            "lengths": (32, 48, 64, 72, 80, 128, 256, 512, 1024, 2048, 4096, 8192),
        },
        "data": {
            # Share of recoloured pictures in a batch; the others are emoji as they are.
            "recoloured": 0.5,
            # Pictures of each split, None for all.
            "pictures": 64 if short else None,
        },
        "stages": {
            "pretrain": {
                "steps": 6 if short else 80,
                "batch_size": 8 if short else 32,
                "learning_rate": 6e-4,
                "warmup_steps": 2 if short else 10,
                "final_fraction": 0.05,
                "weight_decay": 0.01,
                "b2": 0.98,
                "trainable": (CONSTANTS, ("projectors/.*", "train")),
                "log_every": 2,
                # One static shape: longer captions are left out (1 % of them).
                "data": {"kind": "captions", "length": 20, "targets": 7},
            },
            "instruct": {
                "steps": 4 if short else 100,
                "batch_size": 4 if short else 8,
                "learning_rate": 6e-4,
                "warmup_steps": 1 if short else 10,
                "final_fraction": 0.05,
                "b2": 0.98,
                "trainable": (
                    CONSTANTS,
                    ("projectors/.*", "train", 0.5),
                    ("backbone/.*/lora_[ab]", "train"),
                ),
                "lora": {"rank": 8, "alpha": 16.0},
                "log_every": 2,
                # Four questions a row, behind one image.
                "data": {"kind": "questions", "length": 84, "targets": 18},
            },
        },
        "drawing": {
            "seed": 0,
            # Each signal token starts as the embedding of a word.
            "words": ("picture", "color", "shape", "object"),
            "patches": {"patch": 8, "latent_channels": 32},
            "denoiser": {
                "width": 64 if short else 512,
                "hidden": 128 if short else 2048,
                "num_layers": 2 if short else 4,
                "context_width": 64 if short else 256,
            },
            # It predicts the picture itself; all noise at the last time.
            "schedule": {
                "sampler": "ddim",
                "spacing": "trailing",
                "noise": {"betas": "squaredcos_cap_v2", "zero_snr": True, "prediction": "sample"},
            },
            # Lambda of the regression that the sketch starts from.
            "ridge_penalty": 0.003,
            # Requests at once.
            "batch_size": 16 if short else 50,
            "steps": 20,
            "guidance_scale": 1.0,
            # Remarks, and as many questions about pictures, that no picture answers; the penalty of large rows.
            "signals": {"others": 8 if short else 100, "penalty": 1e-3},
            "stage": {
                "steps": 4 if short else 750,
                "batch_size": 8 if short else 96,
                "learning_rate": 2e-3,
                "warmup_steps": 1 if short else 40,
                "final_fraction": 0.02,
                "weight_decay": 0.01,
                "b2": 0.98,
                "trainable": (
                    # The sketch stays the regression that it is.
                    ("output_projectors/image_out/(mean|std|sketch/.*)", "freeze"),
                    ("generators/image_out/autoencoder/.*", "freeze"),
                    ("(output_projectors|generators)/.*", "train"),
                ),
                # Some drawings are trained without a prompt, for guidance.
                "loss_weights": {"drop": 0.1},
                "log_every": 4 if short else 25,
                "data": {"recoloured": 0.7},
            },
        },
        "evaluation": {
            # Rows at once; 2 x 69 and 4 x 69 hold the held-out nouns and their yes/no questions exactly.
            "batch_size": 16 if short else 69,
            "max_new_tokens": 8,
        },
        # (stage, held-out what, metric, field, lowest, highest): reported, and nothing else hangs on them.
        "goals": () if short else GOALS,
    }
