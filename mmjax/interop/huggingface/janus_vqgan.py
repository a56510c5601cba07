"""JanusVQVAE: the codes that Janus and Janus-Pro draw with; the autoencoder alone.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/janus
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.huggingface import vqgan
from mmjax.interop.table import Rewrite, Row

MODEL_TYPE = "janus_vqgan"
IGNORE = ()


def config_from_hf(hf: Mapping[str, Any]) -> VQAutoencoderConfig:
    """A `janus_vqgan` config -> VQAutoencoderConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    sizes = vqgan.sizes_from_hf(hf, 128, (1, 1, 2, 2, 4))
    levels = len(sizes["widths"])
    if hf.get("out_channels", 3) != sizes["image_channels"]:
        raise ConfigError(f"out_channels {hf.get('out_channels', 3)} must be in_channels, {sizes['image_channels']}")
    return VQAutoencoderConfig(
        codes=hf.get("num_embeddings", 16384),
        latent_channels=hf.get("embed_dim", 8),
        inner_channels=hf.get("latent_channels", 256),
        attention_levels=(levels - 1,),
        unit_codes=True,
        scale=1.0,
        image_size=hf.get("num_patches", 32) * 2 ** (levels - 1),
        **sizes,
    )


def config_to_hf(config: VQAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """VQAutoencoderConfig -> the content of config.json; other keys of `hf` are kept.

    Raises:
        ConfigError: an option that Janus' autoencoder has no word for.
    """
    last = len(config.widths) - 1
    if config.attention_levels != (last,) or not (config.unit_codes and config.decodes and config.middle_attention):
        raise ConfigError(
            "JanusVQVAE attends in the middle and in the last level, and its codes have length 1; got attention_levels "
            f"{list(config.attention_levels)}, middle_attention {config.middle_attention}, unit_codes "
            f"{config.unit_codes}, decodes {config.decodes}"
        )
    if config.spatial_norm:
        raise ConfigError("JanusVQVAE has no spatial_norm")
    return {
        **(hf or {}),
        **vqgan.sizes_to_hf(config),
        "model_type": MODEL_TYPE,
        "architectures": ["JanusVQVAE"],
        "num_embeddings": config.codes,
        "out_channels": config.image_channels,
        "num_patches": config.image_size // config.downsampling,
    }


def rewrites(config: VQAutoencoderConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: VQAutoencoderConfig) -> list[Row]:
    """See `mmjax.interop.huggingface.vqgan`."""
    return vqgan.table(config)
