"""Published generators as plain dicts, each written down once: denoiser, autoencoder, schedule, text encoder.

A dict has the fields of the config that its `kind` names; `small` makes of a generator one that trains on a CPU in
seconds.
"""

from typing import Any

from configs.parts import Part

# Text encoders of generators

# Radford et al., 2021: that of CLIP ViT-L/14, whole, as Stable Diffusion 1 reads it.
CLIP_L_TEXT: Part = {
    "kind": "text", "vocab_size": 49408, "width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072,
    "projection_dim": None,
}  # fmt: skip
# OpenCLIP's of ViT-H/14 without its last block, as Stable Diffusion 2 and Zeroscope read it.
CLIP_H_TEXT: Part = {
    **CLIP_L_TEXT, "width": 1024, "num_layers": 23, "num_heads": 16, "mlp_width": 4096, "activation": "gelu",
}  # fmt: skip
# Wu et al., 2023: CLAP's, a RoBERTa of base size, whose projection AudioLDM reads.
CLAP_TEXT: Part = {
    "kind": "bidirectional_text", "vocab_size": 50265, "width": 768, "num_layers": 12, "num_heads": 12, "head_dim": 64,
    "mlp_width": 3072, "activation": "gelu", "gated": False, "norm": "layer", "norm_eps": 1e-12, "post_norm": True,
    "use_bias": True, "attention_scale": None, "position": "learned", "pad_id": 1, "pooled": True,
    "projection_dim": 512,
}  # fmt: skip

# Schedules

_LATENT_NOISE = {"train_steps": 1000, "betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PNDM: Part = {"kind": "schedule", "sampler": "pndm", "offset": 1, "final_is_clean": False, "noise": _LATENT_NOISE}
DDIM: Part = {**PNDM, "sampler": "ddim"}

# Generators

# Rombach et al., 2022: Stable Diffusion 1.5 at 512 px, and 2.1's smaller one, which reads the wider text encoder.
STABLE_DIFFUSION_1_5: Part = {
    "kind": "diffusion",
    "denoiser": {"kind": "unet"},
    "autoencoder": {"kind": "autoencoder"},
    "schedule": PNDM,
}
STABLE_DIFFUSION_2_1_BASE: Part = {
    **STABLE_DIFFUSION_1_5,
    "denoiser": {"kind": "unet", "context_width": 1024, "num_heads": (5, 10, 20, 20)},
}
# Wang et al., 2023 ("ModelScope"); Zeroscope v2 is it, trained on at 576 x 320.
ZEROSCOPE: Part = {
    "kind": "diffusion",
    "denoiser": {"kind": "unet3d"},
    "autoencoder": {"kind": "autoencoder"},
    "schedule": DDIM,
    "size": (320, 576),
    "frames": 16,
}
# Liu et al., 2023 ("AudioLDM"), its large checkpoint: 5.12 seconds of sound, 512 frames of 64 mel channels.
AUDIOLDM_L: Part = {
    "kind": "diffusion",
    "denoiser": {
        "kind": "unet", "in_channels": 8, "out_channels": 8, "widths": (256, 512, 768, 1280), "layers": (0, 1, 1, 1),
        "num_heads": (8, 8, 8, 8), "context_width": None, "pooled": "beside", "pooled_width": 512, "sample_size": 128,
    },
    "autoencoder": {
        "kind": "autoencoder", "widths": (128, 256, 512), "latent_channels": 8, "image_channels": 1,
        "scale": 0.9227914214134216,
    },
    "schedule": {**DDIM, "noise": {**_LATENT_NOISE, "beta_start": 0.0015, "beta_end": 0.0195}},
    "size": (512, 64),
    "vocoder": {
        "kind": "vocoder", "num_mels": 64, "width": 1024, "rates": (5, 4, 2, 2, 2), "windows": (16, 16, 8, 4, 4),
        "normalize": False,
    },
}  # fmt: skip


def small(generator: Part, tiny: bool = True) -> Part:
    """The generator with every option and hardly a parameter, where `tiny`; else as it is."""
    if not tiny:
        return generator
    denoiser, autoencoder = generator["denoiser"], generator["autoencoder"]
    sizes: dict[str, Any] = {"widths": (8, 16), "blocks": 1, "groups": 4, "sample_size": 4}
    if denoiser.get("context_width", 0) is not None:
        sizes["context_width"] = SMALL_WIDTH
    else:
        sizes["pooled_width"] = SMALL_WIDTH
    if denoiser["kind"] == "unet3d":
        sizes |= {"attends": (True, False), "head_dim": 4}
    else:
        sizes |= {"layers": (1, 0), "num_heads": (2, 2)}
    out = {
        **generator,
        "denoiser": {**denoiser, **sizes},
        "autoencoder": {**autoencoder, "widths": (8, 8), "blocks": 1, "groups": 4, "image_size": 8},
    }
    if generator.get("frames"):
        out |= {"size": (8, 8), "frames": 2}
    if generator.get("vocoder"):
        out |= {
            "size": (16, 8),
            "vocoder": {**generator["vocoder"], "num_mels": 8, "width": 8, "rates": (4, 2), "windows": (8, 4)},
        }
    return out


# Channels of a small generator's condition.
SMALL_WIDTH = 16


def small_text(encoder: Part, tiny: bool = True) -> Part:
    """The text encoder of a small generator, where `tiny`; it reads bytes."""
    if not tiny:
        return encoder
    sizes = {"vocab_size": 272, "width": SMALL_WIDTH, "num_layers": 2, "num_heads": 2, "mlp_width": 24}
    if encoder["kind"] == "bidirectional_text":
        return {**encoder, **sizes, "head_dim": SMALL_WIDTH // 2, "projection_dim": SMALL_WIDTH, "table_rows": 16}
    return {**encoder, **sizes, "max_positions": 12}


def small_codes(autoencoder: Part, tiny: bool = True) -> Part:
    """The VQ autoencoder with every option, 16 codes and hardly a parameter, where `tiny`: 8 pixels, 4 x 4 codes."""
    if not tiny:
        return autoencoder
    if "maps" in autoencoder:
        return {**autoencoder, "maps": small_codes(autoencoder["maps"]), "frames": 2}
    levels = {"attention_levels": (1,) if autoencoder.get("attention_levels") else ()}
    return {**autoencoder, "codes": 16, "widths": (8, 8), "blocks": 1, "groups": 4, "image_size": 8, **levels}


def code_images(side: int, before: str, behind: str, weight: float = 1.0) -> dict[str, Any]:
    """The recipe of square images that stand in the text as codes, between two words."""
    sizes = {"height": side, "width": side}
    return {"code_processor_type": "CodeImages", **sizes, "before": before, "behind": behind, "weight": weight}


def queries(llm: Part, generator: Part, num_queries: int, tiny: bool, **options: Any) -> Part:
    """Learned queries that read a signal (GILL): as many as the generator's own text encoder reads tokens."""
    denoiser = generator["denoiser"]
    width = denoiser.get("context_width", 1024 if denoiser["kind"] == "unet3d" else 768) or denoiser["pooled_width"]
    sizes = {}
    if tiny:
        sizes = {"inner_width": 16, "num_heads": 2, "mlp_width": 24, "encoder_layers": 1, "decoder_layers": 1}
    return {
        "kind": "queries_output", "in_width": llm["width"], "width": width,
        "num_queries": min(num_queries, 12) if tiny else num_queries, **sizes, **options,
    }  # fmt: skip


def targets(kind: str, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    """The recipe of images or frames of (height, width) that a model is to make."""
    return {"target_processor_type": kind, "height": size[0], "width": size[1], **options}


def sounds(size: tuple[int, int]) -> dict[str, Any]:
    """The recipe of sounds that a model is to make, whose spectrogram has (frames, channels)."""
    return {"target_processor_type": "SoundTargets", "frames": size[0], "num_mels": size[1]}
