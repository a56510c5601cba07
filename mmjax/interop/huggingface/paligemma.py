"""PaliGemma and PaliGemma 2 (transformers' PaliGemmaForConditionalGeneration): SigLIP, one map, Gemma as a prefix-LM.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/paligemma

The prefix sees all of itself, in PaliGemma 2's windowed layers too. The embeddings of text are scaled, as all of
Gemma's; those of images go in as the projector gives them. Their positions count from one and ours from zero, which is
the same: rotary positions know nothing but differences.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import LINEAR, Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

# PaliGemmaConfig's own tower: SigLIP So400m/14 at 224 pixels.
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}


def image_port(config: MultimodalLMConfig, architecture: str, projector: type) -> None:
    """Checks that a model has one image port with a projector of this kind.

    Raises:
        ConfigError: it has others.
    """
    found = {port: type(part).__name__ for port, part in config.projectors.items()}
    if found != {PORT: projector.__name__}:
        raise ConfigError(
            f"transformers' {architecture} has the port {PORT!r} alone, with a {projector.__name__}; this has {found}"
        )


def normed(tower: ViTConfig) -> ViTConfig:
    """The tower with all its tokens behind the last norm as features: what transformers calls last_hidden_state.

    Raises:
        ConfigError: a tower that has no norm over all tokens.
    """
    if not tower.final_norm:
        raise ConfigError("config.json: vision_config is of a tower without a norm over all its tokens, not SigLIP's")
    return dataclasses.replace(tower, feature_norm=True)


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    tower = normed(tower)
    out = hf.get("projection_dim", 2048)
    if out != width:
        raise ConfigError(f"config.json: projection_dim {out} is not text_config.hidden_size {width}")
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: LinearProjectorConfig(tower.feature_width, width)},
        "media_tokens": {PORT: hf.get("image_token_index", hf.get("image_token_id", 256000))},
        "bidirectional": "prefix",
    }


def _write(config: MultimodalLMConfig) -> Json:
    image_port(config, FAMILY.architecture, LinearProjectorConfig)
    return {
        "projection_dim": config.backbone.width,
        "hidden_size": config.backbone.width,
        "image_token_index": config.media_tokens[PORT],
        "image_token_id": config.media_tokens[PORT],
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    ours, theirs = f"projectors/{PORT}/out/", "multi_modal_projector.linear."
    return [Row(f"{ours}kernel", f"{theirs}weight", LINEAR), Row(f"{ours}bias", f"{theirs}bias")]


FAMILY = VisionTextFamily(
    kind="paligemma",
    architecture="PaliGemmaForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    text="gemma",
    vision=SIGLIP,
    tied=True,
    text_keys={"use_bidirectional_attention": True},
    window_pairs=False,
)
