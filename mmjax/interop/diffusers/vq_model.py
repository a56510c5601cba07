"""VQModel: the VQGANs of latent diffusion, aMUSEd and Paella, and Kandinsky's MoVQ.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/vq_model.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.diffusers.rows import conv
from mmjax.interop.diffusers.sides import DIFFUSERS, attention_levels, level_kinds, old_attention, side
from mmjax.interop.table import Rewrite, Row

CLASS = "VQModel"
IGNORE = ()
# Groups of a spatial norm, whatever `norm_num_groups` says.
SPATIAL_GROUPS = 32


def config_from_hf(hf: Mapping[str, Any]) -> VQAutoencoderConfig:
    """A `config.json` -> VQAutoencoderConfig.

    Raises:
        ConfigError: levels of another kind or not mirrored, or an option that is not supported.
    """
    widths = tuple(hf.get("block_out_channels", (64,)))
    if hf.get("in_channels", 3) != hf.get("out_channels", 3):
        raise ConfigError(f"in_channels {hf['in_channels']} and out_channels {hf['out_channels']} must be the same")
    latents, groups = hf.get("latent_channels", 3), hf.get("norm_num_groups", 32)
    code_width = hf.get("vq_embed_dim") or latents
    norm = hf.get("norm_type", "group")
    if norm not in ("group", "spatial"):
        raise ConfigError(f"norm_type: {norm!r} is not supported, only 'group' and 'spatial'")
    if norm == "spatial" and (groups != SPATIAL_GROUPS or code_width != latents):
        raise ConfigError(
            f"norm_type 'spatial' with norm_num_groups {groups}, vq_embed_dim {code_width}, latent_channels {latents}; "
            f"the first must be {SPATIAL_GROUPS} and the others the same"
        )
    return VQAutoencoderConfig(
        codes=hf.get("num_vq_embeddings", 256),
        latent_channels=code_width,
        widths=widths,
        blocks=hf.get("layers_per_block", 1),
        inner_channels=latents,
        image_channels=hf.get("in_channels", 3),
        groups=groups,
        activation=hf.get("act_fn", "silu"),
        middle_attention=hf.get("mid_block_add_attention", True),
        attention_levels=attention_levels(hf, len(widths)),
        spatial_norm=norm == "spatial",
        scale=hf.get("scaling_factor", 0.18215),
        image_size=hf.get("sample_size", 32),
    )


def config_to_hf(config: VQAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """VQAutoencoderConfig -> the content of config.json; other keys of `hf` are kept.

    Raises:
        ConfigError: codes of length 1, or no decoder.
    """
    if config.unit_codes or not config.decodes:
        raise ConfigError(
            "diffusers' VQModel has a decoder, of codes as they are: unit_codes must be False and decodes True"
        )
    return {
        **(hf or {}),
        "_class_name": CLASS,
        "num_vq_embeddings": config.codes,
        "vq_embed_dim": config.latent_channels,
        "block_out_channels": list(config.widths),
        **level_kinds(config),
        "layers_per_block": config.blocks,
        "latent_channels": config.inner_channels,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "norm_num_groups": config.groups,
        "norm_type": "spatial" if config.spatial_norm else "group",
        "act_fn": config.activation,
        "mid_block_add_attention": config.middle_attention,
        "scaling_factor": config.scale,
        "sample_size": config.image_size,
    }


def rewrites(config: VQAutoencoderConfig) -> list[Rewrite]:
    """The names that attention had before."""
    return old_attention()


def table(config: VQAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of both sides, the codebook and the maps around it."""
    rows = side(config, False, DIFFUSERS) + side(config, True, DIFFUSERS, config.spatial_norm)
    rows += conv("to_codes", "quant_conv") + conv("from_codes", "post_quant_conv")
    return [*rows, Row("quantizer/codebook", "quantize.embedding.weight")]
