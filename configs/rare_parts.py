"""Parts that one or two systems have, as plain dicts; those of many are in `configs.parts`."""

from configs.parts import CLIP_H_336, CLIP_L_224, EVA_G_224, LLAMA_7B, PLAIN_1_3B, QWEN2_VISION, SIGLIP_SO400M_384, Part

# Image towers

# SigLIP at other sizes of images, its features behind the last norm, as PaliGemma and Gemma 3 take them.
SIGLIP_SO400M_224: Part = {**SIGLIP_SO400M_384, "image_size": 224, "feature_norm": True}
SIGLIP_SO400M_448: Part = {**SIGLIP_SO400M_224, "image_size": 448}
SIGLIP_SO400M_896: Part = {**SIGLIP_SO400M_224, "image_size": 896}
# All of CLIP's tokens behind its last norm, as KOSMOS-2 reads them.
CLIP_L_NORMED: Part = {**CLIP_L_224, "feature_layers": (-1,), "feature_strategy": "full", "feature_norm": True}
# OpenCLIP's ViT-H/14 with its class token, as IDEFICS has it.
CLIP_H_224: Part = {**CLIP_H_336, "image_size": 224, "feature_layers": (-1,), "feature_strategy": "full"}
# Chen et al., 2024: InternViT of 300M, as InternVL 2.5 and 3 have it.
INTERN_VIT_300M: Part = {
    "kind": "vit",
    "image_size": 448,
    "patch_size": 14,
    "width": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "mlp_width": 4096,
    "activation": "gelu",
    "norm_eps": 1e-6,
    "pre_norm": False,
    "patch_bias": True,
    "pool": "none",
    "layer_scale": 0.1,
    "feature_strategy": "patches",
}
# Bai et al., 2025: Qwen2.5-VL's tower, whose layers attend in windows of 8 x 8 patches but every eighth.
QWEN2_5_VISION: Part = {
    **QWEN2_VISION,
    "mlp_width": 3420,
    "activation": "silu",
    "gated": True,
    "norm": "rms",
    "window": 8,
    "full_layers": (7, 15, 23, 31),
}
# Chen et al., 2023: ViT-4B of PaLI, without biases of its own kind; 256 features of 224 px.
VIT_4B: Part = {
    **EVA_G_224,
    "width": 1792,
    "num_layers": 56,
    "num_heads": 16,
    "mlp_width": 15360,
    "activation": "gelu_tanh",
    "class_token": False,
    "pool": "none",
}
# Wang et al., 2022: BEiT-3 large at 448 px, the vision half of VisCPM's Muffin.
BEIT_3_L_448: Part = {
    **EVA_G_224, "image_size": 448, "patch_size": 16, "width": 1024, "num_layers": 24, "mlp_width": 4096,
}  # fmt: skip
# He et al., 2016: the first three stages of ResNet-101 at 384 px, as OFA has them.
RESNET_101_384: Part = {
    "kind": "resnet",
    "image_size": 384,
    "widths": (256, 512, 1024),
    "depths": (3, 4, 23),
}
TINY_RESNET: Part = {**RESNET_101_384, "image_size": 32, "stem_width": 8, "widths": (16, 24, 48), "depths": (1, 1, 1)}

# Points

# Xue et al., 2024: ULIP-2's Point-BERT over 8192 points with colours.
ULIP_2: Part = {
    "kind": "point_cloud",
    "num_points": 8192,
    "channels": 6,
    "num_groups": 512,
    "group_size": 32,
    "width": 384,
    "num_layers": 12,
    "num_heads": 6,
    "mlp_width": 1536,
    "feature_strategy": "full",
}
TINY_POINTS: Part = {
    **ULIP_2, "num_points": 24, "num_groups": 6, "group_size": 4, "width": 48, "num_layers": 2, "num_heads": 4,
    "mlp_width": 96, "group_width": 16, "point_widths": (8, 16), "position_width": 16,
}  # fmt: skip

# Language models

# Gemma Team, 2024 and 2025; the first two with PaliGemma's places and segments behind Gemma's words.
GEMMA_2B: Part = {
    "kind": "decoder",
    "vocab_size": 257216,
    "width": 2048,
    "num_layers": 18,
    "num_heads": 8,
    "num_kv_heads": 1,
    "head_dim": 256,
    "mlp_width": 16384,
    "max_positions": 8192,
    "activation": "gelu_tanh",
    "tie_embeddings": True,
    "norm_offset": 1.0,
    "embedding_scale": 2048**0.5,
}
GEMMA2_2B: Part = {
    **GEMMA_2B,
    "width": 2304,
    "num_layers": 26,
    "num_kv_heads": 4,
    "mlp_width": 9216,
    "post_norms": True,
    "sliding_window": 4096,
    "window_pattern": (True, False),
    "window_pairs": False,
    "attention_cap": 50.0,
    "logit_cap": 30.0,
    "embedding_scale": 2304**0.5,
}
GEMMA3_4B: Part = {
    **GEMMA_2B,
    "vocab_size": 262208,
    "width": 2560,
    "num_layers": 34,
    "num_kv_heads": 4,
    "mlp_width": 10240,
    "max_positions": 131072,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "linear", "factor": 8.0},
    "qk_norm": True,
    "post_norms": True,
    "sliding_window": 1024,
    "window_pattern": (True, True, True, True, True, False),
    "window_rope_theta": 1e4,
    "embedding_scale": 2560**0.5,
}
GEMMA3_12B: Part = {
    **GEMMA3_4B, "width": 3840, "num_layers": 48, "num_heads": 16, "num_kv_heads": 8, "mlp_width": 15360,
    "embedding_scale": 3840**0.5,
}  # fmt: skip
GEMMA3_27B: Part = {
    **GEMMA3_4B, "width": 5376, "num_layers": 62, "num_heads": 32, "num_kv_heads": 16, "head_dim": 128,
    "mlp_width": 21504, "attention_scale": 168**-0.5, "embedding_scale": 5376**0.5,
}  # fmt: skip
# Adept, 2023: Persimmon, squared ReLU and half of each head rotated.
PERSIMMON_8B: Part = {
    "kind": "decoder",
    "vocab_size": 262144,
    "width": 4096,
    "num_layers": 36,
    "num_heads": 64,
    "num_kv_heads": 64,
    "head_dim": 64,
    "mlp_width": 16384,
    "max_positions": 16384,
    "norm": "layer",
    "norm_eps": 1e-5,
    "rope_theta": 25000.0,
    "activation": "relu2",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "qk_norm": True,
    "rotary_fraction": 0.5,
}
# Peng et al., 2023: a Magneto transformer with norms inside attention and MLP.
KOSMOS_2_LLM: Part = {
    **PLAIN_1_3B,
    "vocab_size": 65037,
    "sub_norm": True,
    "position": "sinusoidal",
    "position_offset": 2,
    "embedding_scale": 2048**0.5,
}
# Chowdhery et al., 2022: attention and MLP side by side, one key/value head, no biases.
PALM_8B: Part = {
    "kind": "decoder",
    "vocab_size": 256000,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 16,
    "num_kv_heads": 1,
    "head_dim": 256,
    "mlp_width": 16384,
    "norm": "layer",
    "norm_bias": False,
    "parallel": True,
    "shared_norm": True,
    "tie_embeddings": True,
}
PALM_62B: Part = {**PALM_8B, "width": 8192, "num_layers": 64, "num_heads": 32, "mlp_width": 32768}
# OpenBMB, 2023: CPM-Bee's sizes; its relative positions are rotary ones here.
CPM_BEE_10B: Part = {
    **LLAMA_7B, "vocab_size": 86583, "num_layers": 48, "mlp_width": 10240, "activation": "gelu",
    "tie_embeddings": True,
}  # fmt: skip
# Lewis et al., 2020: BART as OFA widens it by 8192 codes of images and 1000 places.
OFA_BASE: Part = {
    "kind": "encoder_decoder",
    "vocab_size": 59457,
    "width": 768,
    "num_layers": 6,
    "num_heads": 12,
    "head_dim": 64,
    "mlp_width": 3072,
    "start_token": 0,
    "max_positions": 1024,
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
    "position": "learned",
    "position_offset": 2,
    "attention_scale": None,
    "embed_norm": True,
}
OFA_LARGE: Part = {**OFA_BASE, "width": 1024, "num_layers": 12, "num_heads": 16, "mlp_width": 4096}
