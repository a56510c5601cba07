"""ChameleonVQVAE: images to the codes that Chameleon reads. Its decoder was never published.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/chameleon
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.huggingface import vqgan
from mmjax.interop.table import Rewrite, Row

MODEL_TYPE = "chameleon_vqgan"
IGNORE = ()


def config_from_hf(hf: Mapping[str, Any]) -> VQAutoencoderConfig:
    """A `chameleon_vqgan` config -> VQAutoencoderConfig without a decoder.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    sizes = vqgan.sizes_from_hf(hf, 128, (1, 1, 2, 2, 4))
    size, attends = hf.get("resolution", 512), hf.get("attn_type", "vanilla")
    if attends not in (None, "vanilla"):
        raise ConfigError(f"attn_type: {attends!r} is not supported, only 'vanilla' and None")
    # Theirs are named by the side of the map that attends.
    named = (hf.get("attn_resolutions") or ()) if attends else ()
    return VQAutoencoderConfig(
        codes=hf.get("num_embeddings", 8192),
        latent_channels=hf.get("embed_dim", 256),
        inner_channels=hf.get("latent_channels", 256),
        middle_attention=attends is not None,
        attention_levels=tuple(level for level in range(len(sizes["widths"])) if size >> level in named),
        decodes=False,
        scale=1.0,
        image_size=size,
        **sizes,
    )


def config_to_hf(config: VQAutoencoderConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """VQAutoencoderConfig -> the content of config.json; other keys of `hf` are kept.

    Raises:
        ConfigError: an option that Chameleon's autoencoder has no word for.
    """
    if config.attention_levels and not config.middle_attention:
        raise ConfigError("ChameleonVQVAE attends in the middle too; attention_levels without middle_attention")
    return {
        **(hf or {}),
        **vqgan.sizes_to_hf(config),
        "model_type": MODEL_TYPE,
        "architectures": ["ChameleonVQVAE"],
        "num_embeddings": config.codes,
        "attn_type": "vanilla" if config.middle_attention else None,
        "attn_resolutions": [config.image_size >> level for level in config.attention_levels] or None,
        "resolution": config.image_size,
    }


def rewrites(config: VQAutoencoderConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: VQAutoencoderConfig) -> list[Row]:
    """See `mmjax.interop.huggingface.vqgan`."""
    return vqgan.table(config)
