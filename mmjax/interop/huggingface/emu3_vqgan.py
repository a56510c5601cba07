"""Emu3VQVAE: the codes that Emu3 reads and writes, of images and of videos; the autoencoder alone.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/emu3
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoderConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.diffusers.rows import conv, norm
from mmjax.interop.diffusers.sides import SideNames, side
from mmjax.interop.huggingface.vqgan import sizes_from_hf, sizes_to_hf
from mmjax.interop.table import LINEAR, Rewrite, Row

MODEL_TYPE = "emu3_vqgan"
IGNORE = (r".*\.num_batches_tracked",)
NAMES = SideNames(
    level=("down_block.down.{}", "up_block.up.{}"),
    block="block.{}",
    step=("downsample.conv", "upsample.conv"),
    attend="attn.{}",
    attend_norm="attn_norms.{}",
    middle=("middle_block.block_1", "middle_block.attn_norm", "middle_block.attn_1", "middle_block.block_2"),
    norm="norm_out",
    shortcut="nin_shortcut",
    maps=("q_proj", "k_proj", "v_proj", "out_proj"),
    kernel=LINEAR,
    inward=True,
    spatial=None,
)


def config_from_hf(hf: Mapping[str, Any]) -> VideoVQAutoencoderConfig:
    """An `emu3_vqgan` config -> VideoVQAutoencoderConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    sizes = sizes_from_hf(hf, 256, (1, 2, 2, 4))
    levels = tuple(sorted(hf.get("attn_resolutions", (3,)) or ()))
    if hf.get("out_channels", 3) != sizes["image_channels"]:
        raise ConfigError(f"out_channels {hf.get('out_channels', 3)} must be in_channels, {sizes['image_channels']}")
    if hf.get("num_attention_heads", 1) != 1:
        raise ConfigError(f"num_attention_heads: {hf['num_attention_heads']} is not supported, only 1")
    width = hf.get("hidden_size", 1024)
    for level in (*levels, -1):
        if sizes["widths"][level] != width:
            raise ConfigError(f"hidden_size: {width} is not the width {sizes['widths'][level]} of what attends")
    maps = VQAutoencoderConfig(
        codes=hf.get("codebook_size", 32768),
        latent_channels=hf.get("embed_dim", 4),
        inner_channels=hf.get("latent_channels", 4),
        attention_levels=levels,
        spatial_norm=True,
        scale=1.0,
        **sizes,
    )
    return VideoVQAutoencoderConfig(maps, hf.get("temporal_downsample_factor", 4))


def config_to_hf(config: VideoVQAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """VideoVQAutoencoderConfig -> the content of config.json; other keys of `hf` are kept.

    Raises:
        ConfigError: an option that Emu3's autoencoder has no word for.
    """
    maps = config.maps
    widths = {maps.widths[level] for level in (*maps.attention_levels, -1)}
    if not maps.middle_attention or len(widths) != 1:
        raise ConfigError(
            f"Emu3VQVAE attends in the middle, and at one width; got middle_attention {maps.middle_attention} and "
            f"widths {sorted(widths)}"
        )
    return {
        **(hf or {}),
        **sizes_to_hf(maps),
        "model_type": MODEL_TYPE,
        "architectures": ["Emu3VQVAE"],
        "codebook_size": maps.codes,
        "out_channels": maps.image_channels,
        "attn_resolutions": list(maps.attention_levels),
        "hidden_size": maps.widths[-1],
        "num_attention_heads": 1,
        "temporal_downsample_factor": config.frames,
    }


def rewrites(config: VideoVQAutoencoderConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: VideoVQAutoencoderConfig) -> list[Row]:
    """Rows of the frames' sides, of time's, and of the codebook."""
    maps = config.maps
    rows = side(maps, False, NAMES) + side(maps, True, NAMES, guided=True)
    for name in ("encoder", "decoder"):
        for number in range(config.halvings):
            rows += conv(f"{name}_time/step_{number}", f"{name}.time_conv.{number}.conv.conv")
        for number in range(maps.blocks):
            ours, theirs = f"{name}_time/block_{number}", f"{name}.time_res_stack.{number}"
            for place in (1, 2):
                rows += conv(f"{ours}/conv_{place}", f"{theirs}.conv{place}.conv")
                rows += norm(f"{ours}/norm_{place}", f"{theirs}.norm{place}")
                for mine, statistic in (("mean", "running_mean"), ("var", "running_var")):
                    rows += [Row(f"{ours}/norm_{place}/{mine}", f"{theirs}.norm{place}.{statistic}")]
    rows += conv("to_codes", "quant_conv.conv") + conv("from_codes", "post_quant_conv.conv")
    return [*rows, Row("quantizer/codebook", "quantize.embedding.weight")]
