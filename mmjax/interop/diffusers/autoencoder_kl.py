"""AutoencoderKL: the autoencoders of Stable Diffusion 1 to 3, SDXL, FLUX, AudioLDM.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/autoencoder_kl.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.autoencoder import AutoencoderConfig
from mmjax.interop.diffusers.rows import conv, norm
from mmjax.interop.table import LINEAR, Rewrite, Row

CLASS = "AutoencoderKL"
IGNORE = ()
# The one kind of level on either side.
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def config_from_hf(hf: Mapping[str, Any]) -> AutoencoderConfig:
    """A `config.json` -> AutoencoderConfig.

    Raises:
        ConfigError: levels of another kind, or maps on one side of the latents alone.
    """
    widths = tuple(hf.get("block_out_channels", (64,)))
    for name, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        if set(hf.get(name, (kind,))) != {kind}:
            raise ConfigError(f"{name}: {sorted(set(hf[name]))}; supported is {kind}")
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
        "down_block_types": [DOWN] * len(config.widths),
        "up_block_types": [UP] * len(config.widths),
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
    """The names that attention had before, and its maps as 1 x 1 convolutions are no longer written."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return [(rf"(\.attentions\.0)\.{name}\.", rf"\1.{new}.") for name, new in old.items()]


def table(config: AutoencoderConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of both sides."""
    last = len(config.widths) - 1
    rows = []
    for side, theirs in (("encoder", "encoder"), ("decoder", "decoder")):
        rows += conv(f"{side}/conv_in", f"{theirs}.conv_in") + conv(f"{side}/conv_out", f"{theirs}.conv_out")
        rows += norm(f"{side}/norm", f"{theirs}.conv_norm_out")
        for number in (1, 2):
            rows += _block(f"{side}/middle_{number}", f"{theirs}.mid_block.resnets.{number - 1}", False)
        if config.middle_attention:
            rows += _attention(f"{side}/attention", f"{theirs}.mid_block.attentions.0")
        decodes = side == "decoder"
        widths = config.widths[::-1] if decodes else config.widths
        for level, width in enumerate(widths):
            there = f"{theirs}.{'up' if decodes else 'down'}_blocks.{level}"
            before = widths[max(level - 1, 0)]
            for number in range(config.blocks + decodes):
                changes = number == 0 and before != width
                rows += _block(f"{side}/level_{level}_{number}", f"{there}.resnets.{number}", changes)
            if level < last:
                step = "upsamplers" if decodes else "downsamplers"
                rows += conv(f"{side}/step_{level}", f"{there}.{step}.0.conv")
    if config.latent_maps:
        rows += conv("to_moments", "quant_conv") + conv("from_latents", "post_quant_conv")
    return rows




def _block(ours: str, theirs: str, changes: bool) -> list[Row]:
    rows = []
    for number in (1, 2):
        rows += norm(f"{ours}/norm_{number}", f"{theirs}.norm{number}")
        rows += conv(f"{ours}/conv_{number}", f"{theirs}.conv{number}")
    return rows + (conv(f"{ours}/shortcut", f"{theirs}.conv_shortcut") if changes else [])


def _attention(ours: str, theirs: str) -> list[Row]:
    rows = norm(f"{ours}/norm", f"{theirs}.group_norm")
    for mine, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        rows += [Row(f"{ours}/{mine}/kernel", f"{theirs}.{name}.weight", LINEAR)]
        rows += [Row(f"{ours}/{mine}/bias", f"{theirs}.{name}.bias")]
    return rows
