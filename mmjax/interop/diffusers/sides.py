"""Rows of the encoder and the decoder of an autoencoder of images, whoever spelt their names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.diffusers.rows import norm as norm_rows
from mmjax.interop.table import LINEAR, Rewrite, Row, Transform


@dataclasses.dataclass(frozen=True)
class SideNames:
    """How a library spells the names inside an encoder and a decoder; "{}" is a number.

    Attributes:
        level: the levels of the encoder and of the decoder.
        block, step: in a level, a residual block; and the convolution to the next level, of either side.
        attend, attend_norm: in a level, the attention after a block, and its norm.
        middle: first block, norm of the attention, attention, second block.
        norm: the last norm.
        shortcut: in a block.
        maps: in attention, q, k, v, o.
        kernel: how the maps are stored.
        inward: whether the decoder's levels are numbered from its last one.
        spatial: last name of an attention's norm where it is a spatial one.
    """

    level: tuple[str, str] = ("down_blocks.{}", "up_blocks.{}")
    block: str = "resnets.{}"
    step: tuple[str, str] = ("downsamplers.0.conv", "upsamplers.0.conv")
    attend: str = "attentions.{}"
    attend_norm: str = "attentions.{}.group_norm"
    middle: tuple[str, str, str, str] = (
        "mid_block.resnets.0", "mid_block.attentions.0.group_norm", "mid_block.attentions.0", "mid_block.resnets.1"
    )  # fmt: skip
    norm: str = "conv_norm_out"
    shortcut: str = "conv_shortcut"
    maps: tuple[str, str, str, str] = ("to_q", "to_k", "to_v", "to_out.0")
    kernel: Transform = LINEAR
    inward: bool = False
    spatial: str | None = "spatial_norm"


DIFFUSERS = SideNames()
# diffusers' kinds of levels of the encoder and of the decoder: plain, and with attention.
PLAIN = ("DownEncoderBlock2D", "UpDecoderBlock2D")
ATTENDS = ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")


def attention_levels(hf: Mapping[str, Any], levels: int) -> tuple[int, ...]:
    """Levels with attention, from 0 for the outermost, of a `config.json` of diffusers.

    Raises:
        ConfigError: levels of another kind, or a decoder that does not mirror the encoder.
    """
    down, up = (
        tuple(hf.get(name, (PLAIN[number],) * levels))
        for number, name in enumerate(("down_block_types", "up_block_types"))
    )
    for name, kinds, number in (("down_block_types", down, 0), ("up_block_types", up, 1)):
        known = (PLAIN[number], ATTENDS[number])
        if not set(kinds) <= set(known) or len(kinds) != levels:
            raise ConfigError(f"{name}: {list(kinds)}; supported are {levels} of {' and '.join(known)}")
    found = tuple(level for level, kind in enumerate(down) if kind == ATTENDS[0])
    if [kind == ATTENDS[1] for kind in reversed(up)] != [kind == ATTENDS[0] for kind in down]:
        raise ConfigError(f"down_block_types {list(down)} and up_block_types {list(up)} are not a mirrored pair")
    return found


def level_kinds(config: Any) -> dict[str, list[str]]:
    """The two lists of a `config.json` of diffusers that say which levels attend."""
    levels = range(len(config.widths))
    down, up = ([(ATTENDS if level in config.attention_levels else PLAIN)[side] for level in levels] for side in (0, 1))
    return {"down_block_types": down, "up_block_types": up[::-1]}


def old_attention() -> list[Rewrite]:
    """The names that attention had before; its maps as 1 x 1 convolutions are no longer written."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return [(rf"(\.attentions\.\d+)\.{name}\.", rf"\1.{new}.") for name, new in old.items()]


def side(config: Any, decodes: bool, names: SideNames, guided: bool = False) -> list[Row]:
    """Rows of one side.

    Args:
        config: of the autoencoder.
        decodes: whether it is the decoder.
        names: theirs.
        guided: whether the norms are spatial ones.
    """
    ours = theirs = "decoder" if decodes else "encoder"
    last = len(config.widths) - 1
    widths = config.widths[::-1] if decodes else config.widths

    def norm(mine: str, name: str) -> list[Row]:
        mine, name = f"{ours}/{mine}", f"{theirs}.{name}"
        if not guided:
            return norm_rows(mine, name)
        rows = norm_rows(f"{mine}/norm", f"{name}.norm_layer")
        return rows + conv(f"{mine}/scale", f"{name}.conv_y") + conv(f"{mine}/shift", f"{name}.conv_b")

    def block(mine: str, name: str, changes: bool = False) -> list[Row]:
        rows = []
        for number in (1, 2):
            rows += norm(f"{mine}/norm_{number}", f"{name}.norm{number}")
            rows += conv(f"{ours}/{mine}/conv_{number}", f"{theirs}.{name}.conv{number}")
        if changes:
            rows += conv(f"{ours}/{mine}/shortcut", f"{theirs}.{name}.{names.shortcut}")
        return rows

    def attention(mine: str, name: str, norm_name: str) -> list[Row]:
        if guided and names.spatial is not None:
            norm_name = f"{norm_name.rpartition('.')[0]}.{names.spatial}"
        rows = norm(f"{mine}/norm", norm_name)
        for letter, part in zip("qkvo", names.maps, strict=True):
            rows += [Row(f"{ours}/{mine}/{letter}/kernel", f"{theirs}.{name}.{part}.weight", names.kernel)]
            rows += [Row(f"{ours}/{mine}/{letter}/bias", f"{theirs}.{name}.{part}.bias")]
        return rows

    rows = conv(f"{ours}/conv_in", f"{theirs}.conv_in") + conv(f"{ours}/conv_out", f"{theirs}.conv_out")
    rows += norm("norm", names.norm)
    first, middle_norm, middle, second = names.middle
    rows += block("middle_1", first) + block("middle_2", second)
    if config.middle_attention:
        rows += attention("attention", middle, middle_norm)
    for level, width in enumerate(widths):
        outer = last - level if decodes else level
        there = names.level[decodes].format(outer if names.inward and decodes else level)
        for number in range(config.blocks + decodes):
            changes = number == 0 and widths[max(level - 1, 0)] != width
            rows += block(f"level_{level}_{number}", f"{there}.{names.block.format(number)}", changes)
            if outer in config.attention_levels:
                places = (f"{there}.{name.format(number)}" for name in (names.attend, names.attend_norm))
                rows += attention(f"attention_{level}_{number}", *places)
        if level < last:
            rows += conv(f"{ours}/step_{level}", f"{theirs}.{there}.{names.step[decodes]}")
    return rows
