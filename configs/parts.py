"""Published parts as plain dicts, each written down once: towers, language models, and what joins the two.

A dict has the fields of the config that its `kind` names. `tiny_tower` and `tiny_llm` keep a part's options (its
norms, activations, biases, positions) and make it so small that it trains on a CPU in seconds.
"""

from typing import Any

Part = dict[str, Any]

# Image towers

# Radford et al., 2021: the features are those of the last block but one, as LLaVA takes them.
CLIP_L_224: Part = {
    "kind": "vit",
    "image_size": 224,
    "patch_size": 14,
    "width": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "mlp_width": 4096,
    "feature_layers": (-2,),
    "feature_strategy": "patches",
}
CLIP_L_336: Part = {**CLIP_L_224, "image_size": 336}
# OpenCLIP's ViT-H/14 and the tower of Qwen-VL, which began as its ViT-bigG/14.
CLIP_H_336: Part = {**CLIP_L_336, "width": 1280, "num_layers": 32, "mlp_width": 5120, "activation": "gelu"}
QWEN_BIGG_448: Part = {
    **CLIP_L_224,
    "image_size": 448,
    "width": 1664,
    "num_layers": 48,
    "mlp_width": 8192,
    "activation": "gelu",
    "norm_eps": 1e-6,
    "class_token": False,
    "pool": "none",
    "feature_layers": (-1,),
}
# Sun et al., 2023: EVA-CLIP's ViT-g without its last block, as BLIP-2 has it.
EVA_G_224: Part = {
    "kind": "vit",
    "image_size": 224,
    "patch_size": 14,
    "width": 1408,
    "num_layers": 39,
    "num_heads": 16,
    "mlp_width": 6144,
    "activation": "gelu",
    "norm_eps": 1e-6,
    "pre_norm": False,
    "patch_bias": True,
    "final_norm": True,
    "pool": "class_twice",
    "feature_norm": True,
}
# Sun et al., 2023: EVA-02-CLIP's ViT-E without its last block, as CogVLM has it, and its ViT-L.
EVA2_E_490: Part = {
    **EVA_G_224,
    "image_size": 490,
    "width": 1792,
    "num_layers": 63,
    "mlp_width": 15360,
    "pool": "class",
    "final_norm": False,
    "feature_norm": False,
    "feature_strategy": "patches",
}
EVA2_L_1120: Part = {
    **EVA_G_224,
    "image_size": 1120,
    "width": 1024,
    "num_layers": 24,
    "mlp_width": 2730,
    "activation": "silu",
    "gated": True,
    "feature_strategy": "patches",
}
# Zhai et al., 2023: the shape-optimised SigLIP without its pooling head; LLaVA-OneVision drops the last block too.
SIGLIP_SO400M_384: Part = {
    "kind": "vit",
    "image_size": 384,
    "patch_size": 14,
    "width": 1152,
    "num_layers": 27,
    "num_heads": 16,
    "mlp_width": 4304,
    "activation": "gelu_tanh",
    "norm_eps": 1e-6,
    "class_token": False,
    "pre_norm": False,
    "patch_bias": True,
    "final_norm": True,
    "pool": "none",
}
# Oquab et al., 2023: the giant, whose MLPs are gated.
DINOV2_G_224: Part = {
    "kind": "vit",
    "image_size": 224,
    "patch_size": 14,
    "width": 1536,
    "num_layers": 40,
    "num_heads": 24,
    "mlp_width": 4096,
    "activation": "silu",
    "gated": True,
    "norm_eps": 1e-6,
    "pre_norm": False,
    "patch_bias": True,
    "final_norm": True,
    "feature_norm": True,
    "feature_strategy": "patches",
    "layer_scale": 1.0,
    "mask_token": True,
}
# OpenCLIP's ConvNeXt-L at 512 pixels, as Osprey takes it: the third of four maps are the features, the others extra.
CLIP_CONVNEXT_L_512: Part = {
    "kind": "convnext",
    "image_size": 512,
    "widths": (192, 384, 768, 1536),
    "depths": (3, 3, 27, 3),
    "feature_stages": (0, 1, 3, 2),
}
# Wang et al., 2024: the tower of Qwen2-VL, which takes images and videos of any size.
QWEN2_VISION: Part = {"kind": "qwen2_vision", "width": 1280, "num_layers": 32, "num_heads": 16, "mlp_width": 5120}

# Towers of ImageBind's huge model (Girdhar et al., 2023)

IMAGEBIND_VISION: Part = {
    "kind": "imagebind",
    "modality": "vision",
    "clip_shape": (1, 224, 224, 3),
    "window": (2, 14, 14),
    "width": 1280,
    "num_layers": 32,
    "num_heads": 16,
    "mlp_width": 5120,
    "patch_norm": False,
    "pre_norm": True,
    "extra_key": False,
}
IMAGEBIND_AUDIO: Part = {
    "kind": "imagebind",
    "modality": "audio",
    "clip_shape": (204, 128),
    "window": (16, 16),
    "stride": (10, 10),
    "clips": 3,
    "width": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_width": 3072,
    "logit_scale": 20.0,
}

# Sound

# Gong et al., 2021. BEATs, which several systems name, has the same blocks over patches of 16 x 16.
AST_BASE: Part = {
    "kind": "ast",
    "num_frames": 1024,
    "num_mels": 128,
    "width": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_width": 3072,
}
# Radford et al., 2022: the encoder of Whisper small.
WHISPER_SMALL: Part = {
    "kind": "whisper",
    "num_mels": 80,
    "max_positions": 1500,
    "width": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_width": 3072,
}

# Language models

LLAMA_7B: Part = {
    "kind": "decoder",
    "vocab_size": 32000,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "mlp_width": 11008,
    "max_positions": 2048,
    "norm_eps": 1e-6,
}
LLAMA_13B: Part = {
    **LLAMA_7B, "width": 5120, "num_layers": 40, "num_heads": 40, "num_kv_heads": 40, "mlp_width": 13824,
}  # fmt: skip
# Llama 2; Vicuna is Llama up to version 1.3 and Llama 2 from 1.5 on.
LLAMA2_7B: Part = {**LLAMA_7B, "max_positions": 4096, "norm_eps": 1e-5}
LLAMA2_13B: Part = {**LLAMA_13B, "max_positions": 4096, "norm_eps": 1e-5}
MISTRAL_7B: Part = {
    **LLAMA2_7B, "num_kv_heads": 8, "mlp_width": 14336, "max_positions": 32768, "rope_theta": 1e6,
}  # fmt: skip
YI_34B: Part = {
    **LLAMA2_7B,
    "vocab_size": 64000,
    "width": 7168,
    "num_layers": 60,
    "num_heads": 56,
    "num_kv_heads": 8,
    "mlp_width": 20480,
    "rope_theta": 5e6,
}
MOBILELLAMA_1_4B: Part = {
    **LLAMA_7B, "width": 2048, "num_layers": 24, "num_heads": 16, "num_kv_heads": 16, "mlp_width": 5632,
}  # fmt: skip
MOBILELLAMA_2_7B: Part = {**LLAMA_7B, "width": 2560, "head_dim": 80, "mlp_width": 6912}
QWEN_7B: Part = {**LLAMA_7B, "vocab_size": 151936, "qkv_bias": True, "max_positions": 8192}
QWEN2_0_5B: Part = {
    "kind": "decoder",
    "vocab_size": 151936,
    "width": 896,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_width": 4864,
    "max_positions": 32768,
    "rope_theta": 1e6,
    "qkv_bias": True,
    "tie_embeddings": True,
}
QWEN2_1_5B: Part = {
    **QWEN2_0_5B, "width": 1536, "num_layers": 28, "num_heads": 12, "head_dim": 128, "mlp_width": 8960,
}  # fmt: skip
QWEN2_7B: Part = {
    **QWEN2_1_5B,
    "vocab_size": 152064,
    "width": 3584,
    "num_heads": 28,
    "num_kv_heads": 4,
    "mlp_width": 18944,
    "tie_embeddings": False,
}
QWEN2_72B: Part = {
    **QWEN2_7B, "width": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "mlp_width": 29568,
}  # fmt: skip
OPT_2_7B: Part = {
    "kind": "decoder",
    "vocab_size": 50272,
    "width": 2560,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 80,
    "mlp_width": 10240,
    "max_positions": 2048,
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tie_embeddings": True,
    "position": "learned",
    "position_offset": 2,
}
OPT_6_7B: Part = {**OPT_2_7B, "width": 4096, "head_dim": 128, "mlp_width": 16384}
# The plain decoder of KOSMOS-1 and of MM1's ablations: 12 D^2 numbers a layer.
PLAIN_1_3B: Part = {
    **OPT_2_7B,
    "vocab_size": 64000,
    "width": 2048,
    "num_layers": 24,
    "head_dim": 64,
    "mlp_width": 8192,
    "activation": "gelu",
    "position": "rotary",
    "position_offset": 0,
}
# MosaicML, 2023: no biases, positions as a slope on attention's logits.
MPT_7B: Part = {
    "kind": "decoder",
    "vocab_size": 50432,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "mlp_width": 16384,
    "max_positions": 2048,
    "norm": "layer",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "activation": "gelu",
    "gated": False,
    "tie_embeddings": True,
    "position": "alibi",
}
MPT_1B: Part = {
    **MPT_7B, "vocab_size": 50368, "width": 2048, "num_layers": 24, "num_heads": 16, "num_kv_heads": 16,
    "mlp_width": 8192,
}  # fmt: skip
# ChatGLM's sizes; its two-dimensional positions are those of one axis here.
CHATGLM_6B: Part = {
    **PLAIN_1_3B,
    "vocab_size": 130528,
    "width": 4096,
    "num_layers": 28,
    "head_dim": 128,
    "mlp_width": 16384,
    "rotary_fraction": 0.5,
}
FLAN_T5_XL: Part = {
    "kind": "encoder_decoder",
    "vocab_size": 32128,
    "width": 2048,
    "num_layers": 24,
    "num_heads": 32,
    "head_dim": 64,
    "mlp_width": 5120,
    "tie_embeddings": False,
}
FLAN_T5_XXL: Part = {**FLAN_T5_XL, "width": 4096, "num_heads": 64, "mlp_width": 10240}

# What joins the two


def linear(tower_width: int, llm: Part, **options: Any) -> Part:
    """One linear map (LLaVA)."""
    return {"kind": "linear", "in_width": tower_width, "width": llm["width"], **options}


def mlp(tower_width: int, llm: Part, **options: Any) -> Part:
    """Two linear maps with GELU between (LLaVA-1.5)."""
    return {"kind": "mlp", "in_width": tower_width, "hidden": llm["width"], "width": llm["width"], **options}


def qformer(tower: Part, llm: Part, tiny: bool, **options: Any) -> Part:
    """BLIP-2's Q-Former of 32 queries and the linear map behind it; of a video, frame by frame."""
    sizes = {"num_queries": 4, "query_width": 48, "num_layers": 2, "num_heads": 4, "mlp_width": 96} if tiny else {}
    return {
        "kind": "qformer",
        "in_width": tower["width"],
        "width": llm["width"],
        "num_features": num_features(tower),
        **sizes,
        **options,
    }


def perceiver(tower: Part, llm: Part, tiny: bool, **options: Any) -> Part:
    """Flamingo's resampler of 64 latents in the tower's width, and a linear map behind it."""
    sizes = {"num_latents": 4, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 12, "mlp_width": 96}
    return {
        "kind": "perceiver",
        "in_width": tower["width"],
        "latent_width": tower["width"],
        "width": llm["width"],
        "output_map": True,
        "num_features": num_features(tower),
        **options,
        **(sizes if tiny else {}),
    }


def grid_of(tower: Part) -> tuple[int, int]:
    """Rows and columns of an image tower's patches."""
    side = tower["image_size"] // tower["patch_size"]
    return side, side


def num_features(tower: Part) -> int:
    """How many features a tower gives of one item."""
    if tower["kind"] == "whisper":
        return tower["max_positions"]
    if tower["kind"] == "ast":
        strides = tower.get("frequency_stride", 10), tower.get("time_stride", 10)
        sides = zip((tower["num_mels"], tower["num_frames"]), strides, strict=True)
        rows, columns = ((size - tower.get("patch_size", 16)) // stride + 1 for size, stride in sides)
        return rows * columns + 2
    rows, columns = grid_of(tower)
    leading = tower.get("class_token", True) and tower.get("feature_strategy", "full") == "full"
    return rows * columns + int(leading)


# Regions of an image


def regions(reader: Part, levels: tuple[str, ...], mask_size: tuple[int, int] | None = None) -> dict[str, Part]:
    """"encoder", "projector" and "recipe" of a port of regions: boxes, or masks of `mask_size`."""
    takes = "boxes" if mask_size is None else "masks"
    shape = {"takes": takes, "mask_size": mask_size}
    return {
        "encoder": {"kind": "region_items", **shape},
        "projector": {"kind": "region_tokens", "reader": reader, "levels": levels, "mask_size": mask_size},
        "recipe": {"region_processor_type": "RegionProcessor", **shape},
    }


# Smaller

_TINY = {"width": 48, "num_layers": 3, "num_heads": 4, "mlp_width": 96}
_TINY_OF_KIND = {
    "vit": {"image_size": 28},
    "qwen2_vision": {},
    "imagebind": {"embed_width": 40},
    "ast": {"num_frames": 36, "num_mels": 26},
    "whisper": {"num_mels": 8, "max_positions": 12},
}


def tiny_tower(tower: Part, tiny: bool = True) -> Part:
    """The tower with every option and hardly a parameter, where `tiny`; else as it is."""
    if not tiny:
        return tower
    if tower["kind"] == "convnext":
        return {**tower, "image_size": 64, "widths": (12, 20, 28, 36), "depths": (1,) * 4}
    small = {**tower, **_TINY, **_TINY_OF_KIND[tower["kind"]]}
    if tower.get("modality") == "vision":
        small["clip_shape"] = (1, 28, 28, 3)
    elif tower.get("modality") == "audio":
        small["clip_shape"] = (36, 26)
    return small


def tiny_llm(llm: Part) -> Part:
    """The language model with every option and hardly a parameter: 256 bytes, two control tokens, 14 to spare."""
    sizes = {"vocab_size": 272, "width": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16, "mlp_width": 160}
    if llm["kind"] == "decoder":
        grouped = llm["num_kv_heads"] < llm["num_heads"]
        sizes |= {"num_kv_heads": 2 if grouped else 4, "max_positions": 512}
    return {**llm, **sizes}
