"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/transformers/transformer_sd3.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import ConfigError
from mmjax.generators.mmdit import MMDiTConfig
from mmjax.interop.diffusers.adaptive_blocks import attention, feed_forward, mlp, modulation
from mmjax.interop.diffusers.rows import conv, linear
from mmjax.interop.table import Rewrite, Row, Shape

CLASS = "SD3Transformer2DModel"
IGNORE = ()
TEXT_NAMES = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclasses.dataclass(frozen=True)
class Places:
    """Ours [rows, columns, D], theirs [1, rows * columns, D]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (1, ours[0] * ours[1], ours[2])

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs.reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(self.theirs_shape(ours.shape))


def config_from_hf(hf: Mapping[str, Any]) -> MMDiTConfig:
    """A `config.json` -> MMDiTConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    heads, channels = hf.get("num_attention_heads", 18), hf.get("in_channels", 16)
    width = heads * hf.get("attention_head_dim", 64)
    if hf.get("caption_projection_dim", 1152) != width:
        raise ConfigError(
            f"caption_projection_dim: {hf.get('caption_projection_dim', 1152)} must be {width}, as wide as the tokens"
        )
    norm = hf.get("qk_norm")
    if norm not in (None, "rms_norm"):
        raise ConfigError(f"qk_norm: {norm!r} is not supported, only None and 'rms_norm'")
    twice = tuple(sorted(hf.get("dual_attention_layers") or ()))
    if twice != tuple(range(len(twice))):
        raise ConfigError(f"dual_attention_layers: {list(twice)} are not the first {len(twice)}")
    return MMDiTConfig(
        in_channels=channels,
        out_channels=channels if (out := hf.get("out_channels", 16)) is None else out,
        patch=hf.get("patch_size", 2),
        width=width,
        num_heads=heads,
        num_layers=hf.get("num_layers", 18),
        twice_layers=len(twice),
        context_width=hf.get("joint_attention_dim", 4096),
        pooled_width=hf.get("pooled_projection_dim", 2048),
        qk_norm=norm is not None,
        max_grid=hf.get("pos_embed_max_size", 96),
        sample_size=hf.get("sample_size", 128),
    )


def config_to_hf(config: MMDiTConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """MMDiTConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        "_class_name": CLASS,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch,
        "attention_head_dim": config.width // config.num_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "dual_attention_layers": list(range(config.twice_layers)),
        "joint_attention_dim": config.context_width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_width,
        "qk_norm": "rms_norm" if config.qk_norm else None,
        "pos_embed_max_size": config.max_grid,
        "sample_size": config.sample_size,
    }


def rewrites(config: MMDiTConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: MMDiTConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of the two stacks, of the last block, and of what is around them."""
    c, last = config, config.num_layers - 1
    rows = conv("patches/proj", "pos_embed.proj") + [Row("places", "pos_embed.pos_embed", Places())]
    rows += mlp("time", "time_text_embed.timestep_embedder") + mlp("pooled", "time_text_embed.text_embedder")
    rows += linear("context", "context_embedder")
    for ours, layers, twice in (
        ("twice", range(c.twice_layers), True),
        ("blocks", range(c.twice_layers, last), False),
    ):
        if layers:
            stacked = _block(ours, "transformer_blocks.{i}", c.qk_norm, twice=twice)
            rows += [dataclasses.replace(row, layers=tuple(layers)) for row in stacked]
    rows += _block("last", f"transformer_blocks.{last}", c.qk_norm, last=True)
    return rows + modulation("modulation", "norm_out.linear") + linear("proj_out", "proj_out")


def _block(ours: str, theirs: str, qk_norm: bool, twice: bool = False, last: bool = False) -> list[Row]:
    rows = modulation(f"{ours}/image_modulation", f"{theirs}.norm1.linear")
    rows += modulation(f"{ours}/text_modulation", f"{theirs}.norm1_context.linear")
    rows += attention(f"{ours}/image_attn", f"{theirs}.attn")
    rows += attention(f"{ours}/text_attn", f"{theirs}.attn", names=TEXT_NAMES[: 3 if last else 4])
    rows += feed_forward(f"{ours}/image_mlp", f"{theirs}.ff")
    norms = [("image_attn", "attn.norm_"), ("text_attn", "attn.norm_added_")]
    if not last:
        rows += feed_forward(f"{ours}/text_mlp", f"{theirs}.ff_context")
    if twice:
        rows += attention(f"{ours}/image_attn_2", f"{theirs}.attn2")
        norms.append(("image_attn_2", "attn2.norm_"))
    if qk_norm:
        rows += [
            Row(f"{ours}/{mine}/{letter}_norm/scale", f"{theirs}.{name}{letter}.weight")
            for mine, name in norms
            for letter in "qk"
        ]
    return rows
