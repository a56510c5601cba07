"""What the VQ autoencoders of Chameleon and Janus have in common: names and sizes of Esser et al.'s VQGAN.

https://github.com/CompVis/taming-transformers/blob/master/taming/modules/diffusionmodules/model.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.diffusers.sides import SideNames, side
from mmjax.interop.table import Pointwise, Row

NAMES = SideNames(
    level=("down.{}", "up.{}"),
    block="block.{}",
    step=("downsample.conv", "upsample.conv"),
    attend="attn.{}",
    attend_norm="attn.{}.norm",
    middle=("mid.block_1", "mid.attn_1.norm", "mid.attn_1", "mid.block_2"),
    norm="norm_out",
    shortcut="nin_shortcut",
    maps=("q", "k", "v", "proj_out"),
    kernel=Pointwise(),
    spatial=None,
)
GROUPS = 32


def sizes_from_hf(hf: Mapping[str, Any], base: int, multipliers: tuple[int, ...]) -> dict[str, Any]:
    """Options that are read in the same way in every family; `base` and `multipliers` are defaults.

    Raises:
        ConfigError: widths that do not start with base_channels, or latents with a variance.
    """
    base, multipliers = hf.get("base_channels", base), tuple(hf.get("channel_multiplier", multipliers))
    if not multipliers or multipliers[0] != 1:
        raise ConfigError(f"channel_multiplier: {list(multipliers)} must start with 1")
    if hf.get("double_latent", False):
        raise ConfigError("double_latent: True is not supported: codes have no variance")
    return {
        "widths": tuple(base * times for times in multipliers),
        "blocks": hf.get("num_res_blocks", 2),
        "image_channels": hf.get("in_channels", 3),
        "groups": GROUPS,
    }


def sizes_to_hf(config: VQAutoencoderConfig) -> dict[str, Any]:
    """`sizes_from_hf` the other way.

    Raises:
        ConfigError: an option that transformers has no word for.
    """
    base = config.widths[0]
    if config.groups != GROUPS or config.activation != "silu" or any(width % base for width in config.widths):
        raise ConfigError(
            f"transformers' VQ autoencoders have {GROUPS} groups, silu, and widths that are multiples of the first; "
            f"got groups {config.groups}, {config.activation}, {list(config.widths)}"
        )
    return {
        "base_channels": base,
        "channel_multiplier": [width // base for width in config.widths],
        "num_res_blocks": config.blocks,
        "in_channels": config.image_channels,
        "latent_channels": config.inner_channels,
        "embed_dim": config.latent_channels,
        "double_latent": False,
    }


def table(config: VQAutoencoderConfig) -> list[Row]:
    """Rows of the encoder, the codebook, and the decoder where there is one."""
    rows = side(config, False, NAMES) + (side(config, True, NAMES) if config.decodes else [])
    rows += conv("to_codes", "quant_conv") + conv("from_codes", "post_quant_conv")
    return [*rows, Row("quantizer/codebook", "quantize.embedding.weight")]
