"""AutoencoderKL: the autoencoders of Stable Diffusion 1 to 3, SDXL, FLUX, AudioLDM.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/autoencoder_kl.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.autoencoder import AutoencoderConfig
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.diffusers.sides import DIFFUSERS, attention_levels, level_kinds, old_attention, side
from mmjax.interop.table import Rewrite, Row

CLASS = "AutoencoderKL"
IGNORE = ()


def config_from_hf(hf: Mapping[str, Any]) -> AutoencoderConfig:
    """A `config.json` -> AutoencoderConfig.

    Raises:
        ConfigError: levels of another kind or not mirrored, or maps on one side of the latents alone.
    """
    widths = tuple(hf.get("block_out_channels", (64,)))
    if hf.get("in_channels", 3) != hf.get("out_channels", 3):
        raise ConfigError(f"in_channels {hf['in_channels']} and out_channels {hf['out_channels']} must be the same")
    maps = hf.get("use_quant_conv", True)
    if hf.get("use_post_quant_conv", True) != maps:
        raise ConfigError("use_quant_conv and use_post_quant_conv must be the same")
    for name in ("latents_mean", "latents_std"):
        if hf.get(name) is not None:
            raise ConfigError(f"{name}: latents scaled channel by channel are not supported")
    size = hf.get("sample_size", 32)
    return AutoencoderConfig(
        widths=widths,
        blocks=hf.get("layers_per_block", 1),
        latent_channels=hf.get("latent_channels", 4),
        image_channels=hf.get("in_channels", 3),
        groups=hf.get("norm_num_groups", 32),
        activation=hf.get("act_fn", "silu"),
        middle_attention=hf.get("mid_block_add_attention", True),
        attention_levels=attention_levels(hf, len(widths)),
        latent_maps=maps,
        scale=hf.get("scaling_factor", 0.18215),
        shift=hf.get("shift_factor") or 0.0,
        image_size=size if isinstance(size, int) else size[0],
    )


def config_to_hf(config: AutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """AutoencoderConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        "_class_name": CLASS,
        "block_out_channels": list(config.widths),
        **level_kinds(config),
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "norm_num_groups": config.groups,
        "act_fn": config.activation,
        "mid_block_add_attention": config.middle_attention,
        "use_quant_conv": config.latent_maps,
        "use_post_quant_conv": config.latent_maps,
        "scaling_factor": config.scale,
        "shift_factor": config.shift or None,
        "sample_size": config.image_size,
    }


def rewrites(config: AutoencoderConfig) -> list[Rewrite]:
    """The names that attention had before."""
    return old_attention()


def table(config: AutoencoderConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of both sides."""
    rows = side(config, False, DIFFUSERS) + side(config, True, DIFFUSERS)
    if config.latent_maps:
        rows += conv("to_moments", "quant_conv") + conv("from_latents", "post_quant_conv")
    return rows
