"""AutoencoderTiny (TAESD).

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/autoencoder_tiny.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.tiny_autoencoder import TinyAutoencoderConfig
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.table import Rewrite, Row

CLASS = "AutoencoderTiny"
IGNORE = ()


def config_from_hf(hf: Mapping[str, Any]) -> TinyAutoencoderConfig:
    """A `config.json` -> TinyAutoencoderConfig.

    Raises:
        ConfigError: levels of several widths, or another way up.
    """
    widths = {*hf.get("encoder_block_out_channels", (64,)), *hf.get("decoder_block_out_channels", (64,))}
    if len(widths) != 1:
        raise ConfigError(f"encoder_block_out_channels and decoder_block_out_channels: {sorted(widths)} must be one")
    if hf.get("upsample_fn", "nearest") != "nearest" or hf.get("upsampling_scaling_factor", 2) != 2:
        raise ConfigError("upsample_fn and upsampling_scaling_factor must be 'nearest' and 2")
    if hf.get("in_channels", 3) != hf.get("out_channels", 3):
        raise ConfigError(f"in_channels {hf['in_channels']} and out_channels {hf['out_channels']} must be the same")
    return TinyAutoencoderConfig(
        width=widths.pop(),
        encoder_blocks=tuple(hf.get("num_encoder_blocks", (1, 3, 3, 3))),
        decoder_blocks=tuple(hf.get("num_decoder_blocks", (3, 3, 3, 1))),
        latent_channels=hf.get("latent_channels", 4),
        image_channels=hf.get("in_channels", 3),
        activation=hf.get("act_fn", "relu"),
        scale=hf.get("scaling_factor", 1.0),
        shift=hf.get("shift_factor") or 0.0,
    )


def config_to_hf(config: TinyAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """TinyAutoencoderConfig -> the content of config.json; other keys of `hf` are kept."""
    levels = len(config.encoder_blocks)
    return {
        **(hf or {}),
        "_class_name": CLASS,
        "encoder_block_out_channels": [config.width] * levels,
        "decoder_block_out_channels": [config.width] * levels,
        "num_encoder_blocks": list(config.encoder_blocks),
        "num_decoder_blocks": list(config.decoder_blocks),
        "latent_channels": config.latent_channels,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "act_fn": config.activation,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
    }


def rewrites(config: TinyAutoencoderConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: TinyAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of both sides; theirs are numbered through, activations and doublings included."""
    rows = []
    for side, levels in (("encoder", config.encoder_blocks), ("decoder", config.decoder_blocks)):
        decodes = side == "decoder"
        rows += conv(f"{side}/conv_in", f"{side}.layers.0")
        at = 1 + decodes
        for level, blocks in enumerate(levels):
            if level and not decodes:
                rows += conv(f"{side}/step_{level}", f"{side}.layers.{at}", bias=False)
                at += 1
            for number in range(blocks):
                for place in (1, 2, 3):
                    there = f"{side}.layers.{at}.conv.{2 * (place - 1)}"
                    rows += conv(f"{side}/block_{level}_{number}/conv_{place}", there)
                at += 1
            if decodes and level + 1 < len(levels):
                rows += conv(f"{side}/step_{level}", f"{side}.layers.{at + 1}", bias=False)
                at += 2
        rows += conv(f"{side}/conv_out", f"{side}.layers.{at}")
    return rows
