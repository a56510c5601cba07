"""UNet3DConditionModel: the denoisers of ModelScope's text-to-video model and of Zeroscope.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/unets/unet_3d_condition.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import ConfigError
from mmjax.generators.unet3d import FIRST_HEADS, TIME_CONVS, UNet3DConfig
from mmjax.interop.diffusers.rows import conv, linear, norm, timed_block, transformer
from mmjax.interop.table import LINEAR, Rewrite, Row, Shape

CLASS = "UNet3DConditionModel"
IGNORE = ()
DOWN, UP = ("DownBlock3D", "CrossAttnDownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
# Options that change what is computed and are supported at these values alone.
FIXED: dict[str, Any] = {
    "downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu", "num_attention_heads": None,
    "time_cond_proj_dim": None,
}  # fmt: skip


def config_from_hf(hf: Mapping[str, Any]) -> UNet3DConfig:
    """A `config.json` -> UNet3DConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    for name, value in FIXED.items():
        if hf.get(name, value) != value:
            raise ConfigError(f"{name}: {hf[name]!r} is not supported, only {value!r}")
    widths = tuple(hf.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(widths)
    down = tuple(hf.get("down_block_types", (DOWN[1],) * (levels - 1) + (DOWN[0],)))
    up = tuple(hf.get("up_block_types", (UP[0],) + (UP[1],) * (levels - 1)))
    attends = tuple(kind == DOWN[1] for kind in down)
    if not set(down) <= set(DOWN) or up != tuple(UP[there] for there in reversed(attends)):
        raise ConfigError(f"down_block_types {list(down)} and up_block_types {list(up)} are not a mirrored pair")
    head_dim, groups = hf.get("attention_head_dim", 64), hf.get("norm_num_groups", 32)
    for name, value in (("attention_head_dim", head_dim), ("norm_num_groups", groups)):
        if not isinstance(value, int):
            raise ConfigError(f"{name}: {value!r} is not supported, only one whole number")
    return UNet3DConfig(
        in_channels=hf.get("in_channels", 4),
        out_channels=hf.get("out_channels", 4),
        widths=widths,
        blocks=hf.get("layers_per_block", 2),
        attends=attends,
        head_dim=head_dim,
        context_width=hf.get("cross_attention_dim", 1024),
        groups=groups,
        norm_eps=hf.get("norm_eps", 1e-5),
        sample_size=hf.get("sample_size") or UNet3DConfig.sample_size,
    )


def config_to_hf(config: UNet3DConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """UNet3DConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        "_class_name": CLASS,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "down_block_types": [DOWN[there] for there in config.attends],
        "up_block_types": [UP[there] for there in reversed(config.attends)],
        "layers_per_block": config.blocks,
        # Their name says what it is here, but not in UNet2DConditionModel.
        "attention_head_dim": config.head_dim,
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "sample_size": config.sample_size,
    }


def rewrites(config: UNet3DConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


@dataclasses.dataclass(frozen=True)
class FrameConv:
    """Ours [size, in, out], theirs (a torch.nn.Conv3d over frames alone) [out, in, size, 1, 1]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (*ours[::-1], 1, 1)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs[..., 0, 0].T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.T[..., None, None]


def table(config: UNet3DConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of all levels."""
    c, last = config, len(config.widths) - 1
    rows = conv("conv_in", "conv_in") + conv("conv_out", "conv_out") + norm("norm", "conv_norm_out")
    for number in (1, 2):
        rows += linear(f"time_{number}", f"time_embedding.linear_{number}")
    rows += transformer("frames_in", "transformer_in", FIRST_HEADS * c.head_dim, LINEAR)
    for level, width in enumerate(c.widths):
        there = f"down_blocks.{level}"
        for number in range(c.blocks):
            before = c.widths[max(level - 1, 0)] if number == 0 else width
            rows += _block("down", f"_{level}_{number}", there, number, before != width)
            rows += _attend("down", f"_{level}_{number}", there, number, width) if c.attends[level] else []
        if level < last:
            rows += conv(f"fall_{level}", f"{there}.downsamplers.0.conv")
    for number in (1, 2):
        rows += _block("middle", f"_{number}", "mid_block", number - 1, False)
    rows += _attend("middle", "", "mid_block", 0, c.widths[-1])
    for level in reversed(range(last + 1)):
        there = f"up_blocks.{last - level}"
        for number in range(c.blocks + 1):
            rows += _block("up", f"_{level}_{number}", there, number, True)
            rows += _attend("up", f"_{level}_{number}", there, number, c.widths[level]) if c.attends[level] else []
        if level:
            rows += conv(f"rise_{level}", f"{there}.upsamplers.0.conv")
    return rows


def _block(way: str, place: str, theirs: str, number: int, changes: bool) -> list[Row]:
    rows = timed_block(f"{way}{place}", f"{theirs}.resnets.{number}", changes)
    for turn in range(1, TIME_CONVS + 1):
        mine, there = f"{way}_conv{place}", f"{theirs}.temp_convs.{number}.conv{turn}"
        # Norm, activation and, from the second on, dropout are numbered too.
        name = f"{there}.{2 if turn == 1 else 3}"
        rows += norm(f"{mine}/norm_{turn}", f"{there}.0")
        rows += [Row(f"{mine}/conv_{turn}/kernel", f"{name}.weight", FrameConv())]
        rows += [Row(f"{mine}/conv_{turn}/bias", f"{name}.bias")]
    return rows


def _attend(way: str, place: str, theirs: str, number: int, width: int) -> list[Row]:
    rows = transformer(f"{way}_attn{place}", f"{theirs}.attentions.{number}", width, LINEAR)
    return rows + transformer(f"{way}_time{place}", f"{theirs}.temp_attentions.{number}", width, LINEAR)
