"""PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/transformers/pixart_transformer_2d.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.pixart import PixArtConfig
from mmjax.interop.diffusers.adaptive_blocks import halves, mlp, modulation
from mmjax.interop.diffusers.options import check_fixed
from mmjax.interop.diffusers.rows import conv, linear
from mmjax.interop.table import Rewrite, Row

CLASS = "PixArtTransformer2DModel"
IGNORE = ()
# Options that change what is computed and are supported at these values alone.
FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
    "upcast_attention": False, "attention_type": "default",
}  # fmt: skip
# Latents of this size are those of 1024 pixels: the checkpoints that were told the size.
TOLD_SIZE = 128


def config_from_hf(hf: Mapping[str, Any]) -> PixArtConfig:
    """A `config.json` -> PixArtConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    check_fixed(hf, FIXED)
    heads, channels, size = (
        hf.get(name, default)
        for name, default in (("num_attention_heads", 16), ("in_channels", 4), ("sample_size", 128))
    )
    width = heads * hf.get("attention_head_dim", 72)
    captions, cross = hf.get("caption_channels"), hf.get("cross_attention_dim", 1152)
    if cross is None or (captions is not None and cross != width):
        raise ConfigError(f"cross_attention_dim: {cross} must be {width}, as wide as the tokens")
    told, stretch = hf.get("use_additional_conditions"), hf.get("interpolation_scale")
    return PixArtConfig(
        in_channels=channels,
        out_channels=channels if (out := hf.get("out_channels", 8)) is None else out,
        patch=hf.get("patch_size", 2),
        width=width,
        num_heads=heads,
        num_layers=hf.get("num_layers", 28),
        context_width=cross if captions is None else captions,
        maps_context=captions is not None,
        reads_size=size == TOLD_SIZE if told is None else told,
        norm_eps=hf.get("norm_eps", 1e-6),
        qkv_bias=hf.get("attention_bias", True),
        stretch=float(max(size // 64, 1) if stretch is None else stretch),
        sample_size=size,
    )


def config_to_hf(config: PixArtConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """PixArtConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        **FIXED,
        "_class_name": CLASS,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch,
        "attention_head_dim": config.width // config.num_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "cross_attention_dim": config.width if config.maps_context else config.context_width,
        "caption_channels": config.context_width if config.maps_context else None,
        "use_additional_conditions": config.reads_size,
        "norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "interpolation_scale": config.stretch,
        "sample_size": config.sample_size,
    }


def rewrites(config: PixArtConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: PixArtConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of the blocks and of what is around them."""
    embed, theirs = "adaln_single.emb", "transformer_blocks.{i}"
    rows = conv("patches/proj", "pos_embed.proj")
    rows += mlp("time", f"{embed}.timestep_embedder") + modulation("modulation", "adaln_single.linear")
    if config.reads_size:
        for name in ("resolution", "aspect_ratio"):
            rows += mlp(name, f"{embed}.{name}_embedder")
    if config.maps_context:
        rows += mlp("context", "caption_projection")
    rows += [Row("blocks/table", f"{theirs}.scale_shift_table"), Row("table", "scale_shift_table")]
    return rows + halves("blocks/halves", theirs, config.qkv_bias, reads=True) + linear("proj_out", "proj_out")
