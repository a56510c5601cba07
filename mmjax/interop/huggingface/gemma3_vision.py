"""Gemma 3 with images (transformers' Gemma3ForConditionalGeneration): SigLIP, pooled and normed, and Gemma 3's LLM.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/gemma3

The tokens of one image see each other both ways, within the window in the layers that have one.
"""

import math
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.paligemma import image_port, normed
from mmjax.interop.huggingface.spelling import Json
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.downsample import PoolConfig


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    tower, tokens = normed(tower), hf.get("mm_tokens_per_image", 256)
    side = math.isqrt(tokens)
    if side**2 != tokens or tower.grid_size % side:
        raise ConfigError(
            f"config.json: mm_tokens_per_image {tokens} is not the square of a number that divides the "
            f"{tower.grid_size} patches of a side"
        )
    projector = PoolConfig(
        in_width=tower.feature_width,
        width=width,
        grid=(tower.grid_size, tower.grid_size),
        out_grid=(side, side),
        pool_first=True,
        norm="rms",
        norm_eps=tower.norm_eps,
        norm_offset=1.0,
        bias=False,
    )
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: projector},
        "media_tokens": {PORT: hf.get("image_token_index", hf.get("image_token_id", 262144))},
        "bidirectional": "item",
    }


def _write(config: MultimodalLMConfig) -> Json:
    image_port(config, FAMILY.architecture, PoolConfig)
    return {
        "mm_tokens_per_image": math.prod(config.projectors[PORT].out_grid),
        "image_token_index": config.media_tokens[PORT],
        "image_token_id": config.media_tokens[PORT],
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    ours, theirs = f"projectors/{PORT}/", "multi_modal_projector."
    # Their matrix is [in, out].
    return [
        Row(f"{ours}out/kernel", f"{theirs}mm_input_projection_weight"),
        Row(f"{ours}norm/scale", f"{theirs}mm_soft_emb_norm.weight"),
    ]


FAMILY = VisionTextFamily(
    kind="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    text="gemma3_text",
    vision={"model_type": "siglip_vision_model"},
    tied=True,
    # transformers' class with images reads the cap and does not apply it.
    text_keys={"final_logit_softcapping": None},
)
