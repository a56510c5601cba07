"""UNet2DConditionModel: the denoisers of Stable Diffusion 1 and 2, SDXL, InstructPix2Pix and AudioLDM.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/unets/unet_2d_condition.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.unet import UNetConfig
from mmjax.interop.diffusers.rows import conv, linear, norm, timed_block, transformer
from mmjax.interop.table import LINEAR, Pointwise, Rewrite, Row

CLASS = "UNet2DConditionModel"
IGNORE = ()
MIDDLE = "UNetMidBlock2DCrossAttn"
# Options that change what is computed and are supported at these values alone.
FIXED: dict[str, Any] = {
    "center_input_sample": False, "only_cross_attention": False, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "act_fn": "silu", "encoder_hid_dim": None, "dual_cross_attention": False, "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional",
    "time_embedding_dim": None, "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default", "cross_attention_norm": None,
    "num_class_embeds": None, "reverse_transformer_layers_per_block": None, "mid_block_only_cross_attention": None,
}  # fmt: skip


def config_from_hf(hf: Mapping[str, Any]) -> UNetConfig:
    """A `config.json` -> UNetConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    for name, value in FIXED.items():
        if hf.get(name, value) not in (value, None) or (hf.get(name, value) is None and value is not None):
            raise ConfigError(f"{name}: {hf[name]!r} is not supported, only {value!r}")
    widths = tuple(hf.get("block_out_channels", (320, 640, 1280, 1280)))
    levels = len(widths)
    down = hf.get("down_block_types", ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",))
    up = hf.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1))
    attends = [name == "CrossAttnDownBlock2D" for name in down]
    wanted = ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attends)]
    if not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"} or list(up) != wanted:
        raise ConfigError(f"down_block_types {list(down)} and up_block_types {list(up)} are not a mirrored pair")
    middle = hf.get("mid_block_type", MIDDLE)
    if middle != MIDDLE:
        raise ConfigError(f"mid_block_type: {middle!r} is not supported, only {MIDDLE!r}")
    layers = _each(hf.get("transformer_layers_per_block", 1), levels, "transformer_layers_per_block")
    context = hf.get("cross_attention_dim", 1280)
    if isinstance(context, (list, tuple)):
        # AudioLDM says the widths themselves, since its transformers read the map.
        context = None if tuple(context) == widths else _one(context, "cross_attention_dim")
    blocks = hf.get("layers_per_block", 2)
    return UNetConfig(
        in_channels=hf.get("in_channels", 4),
        out_channels=hf.get("out_channels", 4),
        widths=widths,
        blocks=blocks if isinstance(blocks, int) else _one(blocks, "layers_per_block"),
        layers=tuple(count if there else 0 for count, there in zip(layers, attends, strict=True)),
        middle_layers=layers[-1],
        num_heads=_each(hf.get("attention_head_dim", 8), levels, "attention_head_dim"),
        context_width=context,
        groups=hf.get("norm_num_groups", 32),
        norm_eps=hf.get("norm_eps", 1e-5),
        sine_first=not hf.get("flip_sin_to_cos", True),
        frequency_shift=float(hf.get("freq_shift", 0)),
        sample_size=hf.get("sample_size") or 64,
        **_pooled(hf),
    )


def _pooled(hf: Mapping[str, Any]) -> dict[str, Any]:
    """What the time's embedding has of a pooled vector."""
    classes, added, width = (
        hf.get(name) for name in ("class_embed_type", "addition_embed_type", "projection_class_embeddings_input_dim")
    )
    if classes is None and added is None:
        return {}
    if classes == "simple_projection" and added is None:
        return {"pooled": "beside" if hf.get("class_embeddings_concat") else "added", "pooled_width": width}
    if added == "text_time" and classes is None:
        size, number = hf["addition_time_embed_dim"], 6
        return {"pooled": "sizes", "pooled_width": width - number * size, "num_sizes": number, "size_width": size}
    raise ConfigError(f"class_embed_type {classes!r} with addition_embed_type {added!r} is not supported")


def _each(value: Any, levels: int, name: str) -> tuple[int, ...]:
    out = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(out) != levels or not all(isinstance(item, int) for item in out):
        raise ConfigError(f"{name}: {value!r} is not a whole number for each of {levels} levels")
    return out


def _one(values: Any, name: str) -> int:
    if len(set(values)) != 1:
        raise ConfigError(f"{name}: {list(values)} differs from level to level, which is not supported")
    return values[0]


def config_to_hf(config: UNetConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """UNetConfig -> the content of config.json; other keys of `hf` are kept."""
    # What is said of a level without a transformer is not read, but for the last: the middle has as many.
    layers = [count or 1 for count in config.layers[:-1]] + [config.middle_layers]
    if not config.middle_layers:
        raise ConfigError("diffusers' UNet2DConditionModel has a transformer in the middle; middle_layers is 0")
    if config.layers[-1] not in (0, config.middle_layers):
        raise ConfigError("diffusers' UNet2DConditionModel has as many layers in the middle as in the last level")
    out: dict[str, Any] = {
        **(hf or {}),
        "_class_name": CLASS,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.widths),
        "down_block_types": ["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in config.layers],
        "up_block_types": ["CrossAttnUpBlock2D" if count else "UpBlock2D" for count in reversed(config.layers)],
        "layers_per_block": config.blocks,
        "transformer_layers_per_block": layers,
        "attention_head_dim": list(config.num_heads),
        "cross_attention_dim": list(config.widths) if config.context_width is None else config.context_width,
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "flip_sin_to_cos": not config.sine_first,
        "freq_shift": config.frequency_shift,
        "sample_size": config.sample_size,
        "use_linear_projection": (hf or {}).get("use_linear_projection", False),
    }
    if config.pooled == "sizes":
        out |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.size_width,
            "projection_class_embeddings_input_dim": config.pooled_width + config.num_sizes * config.size_width,
        }
    elif config.pooled != "none":
        out |= {
            "class_embed_type": "simple_projection",
            "class_embeddings_concat": config.pooled == "beside",
            "projection_class_embeddings_input_dim": config.pooled_width,
        }
    return out


def rewrites(config: UNetConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: UNetConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of all levels; `hf` says whether the maps around transformers are stored as 1 x 1 convolutions."""
    c, last = config, len(config.widths) - 1
    around = LINEAR if (hf or {}).get("use_linear_projection") else Pointwise()
    rows = conv("conv_in", "conv_in") + conv("conv_out", "conv_out") + norm("norm", "conv_norm_out")
    for number in (1, 2):
        rows += linear(f"time_{number}", f"time_embedding.linear_{number}")
    if c.pooled == "sizes":
        for number in (1, 2):
            rows += linear(f"pooled_{number}", f"add_embedding.linear_{number}")
    elif c.pooled != "none":
        rows += linear("pooled_1", "class_embedding")
    for level, width in enumerate(c.widths):
        for number in range(c.blocks):
            before = c.widths[max(level - 1, 0)] if number == 0 else width
            rows += timed_block(f"down_{level}_{number}", f"down_blocks.{level}.resnets.{number}", before != width)
            if c.layers[level]:
                there = f"down_blocks.{level}.attentions.{number}"
                rows += transformer(f"down_attn_{level}_{number}", there, c.widths[level], around)
        if level < last:
            rows += conv(f"fall_{level}", f"down_blocks.{level}.downsamplers.0.conv")
    for number in (1, 2):
        rows += timed_block(f"middle_{number}", f"mid_block.resnets.{number - 1}", False)
    if c.middle_layers:
        rows += transformer("middle_attn", "mid_block.attentions.0", c.widths[-1], around)
    for level in reversed(range(last + 1)):
        there = f"up_blocks.{last - level}"
        for number in range(c.blocks + 1):
            # Always more channels than come out, so that the shortcut is a map.
            rows += timed_block(f"up_{level}_{number}", f"{there}.resnets.{number}", True)
            if c.layers[level]:
                name = f"{there}.attentions.{number}"
                rows += transformer(f"up_attn_{level}_{number}", name, c.widths[level], around)
        if level:
            rows += conv(f"rise_{level}", f"{there}.upsamplers.0.conv")
    return rows
