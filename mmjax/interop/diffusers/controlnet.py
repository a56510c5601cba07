"""ControlNetModel: what tells Stable Diffusion's UNets of a picture.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/controlnets/controlnet.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.controlnet import ControlNetConfig
from mmjax.interop.diffusers import unet_2d_condition
from mmjax.interop.diffusers.options import check_fixed
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.table import Rewrite, Row

CLASS = "ControlNetModel"
IGNORE = ()
FIXED: dict[str, Any] = {"global_pool_conditions": False, "encoder_hid_dim_type": None}
# Of a UNet's options those that only its way up has.
UPWARDS = ("out_channels", "up_block_types", "sample_size")
ORDERS = ("rgb", "bgr")


def config_from_hf(hf: Mapping[str, Any]) -> ControlNetConfig:
    """A `config.json` -> ControlNetConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    check_fixed(hf, FIXED)
    order = hf.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ORDERS:
        raise ConfigError(f"controlnet_conditioning_channel_order: {order!r} is not supported, only {ORDERS}")
    levels = len(hf.get("block_out_channels", (320, 640, 1280, 1280)))
    down = hf.get("down_block_types", ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",))
    up = [name.replace("Down", "Up") for name in reversed(down)]
    heads = hf.get("num_attention_heads") or hf.get("attention_head_dim", 8)
    like = {**hf, "down_block_types": down, "up_block_types": up, "attention_head_dim": heads}
    like.pop("num_attention_heads", None)
    unet = unet_2d_condition.config_from_hf(like)
    return ControlNetConfig(
        **{field.name: getattr(unet, field.name) for field in dataclasses.fields(unet)},
        picture_channels=hf.get("conditioning_channels", 3),
        picture_widths=tuple(hf.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)),
        blue_first=order == "bgr",
    )


def config_to_hf(config: ControlNetConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """ControlNetConfig -> the content of config.json; other keys of `hf` are kept."""
    out = unet_2d_condition.config_to_hf(config, hf)
    return {
        **{name: value for name, value in out.items() if name not in UPWARDS},
        "_class_name": CLASS,
        "conditioning_channels": config.picture_channels,
        "conditioning_embedding_out_channels": list(config.picture_widths),
        "controlnet_conditioning_channel_order": ORDERS[config.blue_first],
    }


def rewrites(config: ControlNetConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: ControlNetConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of the UNet's way down and middle, of the picture's convolutions, and of the maps out."""
    rows = unet_2d_condition.table(config, hf)
    rows = [row for row in rows if not row.ours.startswith(("up_", "rise_", "norm/", "conv_out/"))]
    pairs = {"picture_in": "conv_in", "picture_out": "conv_out"}
    pairs |= {f"picture_{i}": f"blocks.{i}" for i in range(2 * len(config.picture_widths) - 2)}
    for ours, theirs in pairs.items():
        rows += conv(ours, f"controlnet_cond_embedding.{theirs}")
    # The first convolution's map, the blocks', and the halved ones.
    for number in range(1 + len(config.widths) * config.blocks + len(config.widths) - 1):
        rows += conv(f"out_{number}", f"controlnet_down_blocks.{number}")
    return rows + conv("out_middle", "controlnet_mid_block")
