"""LLaVA 1.5 (transformers' LlavaForConditionalGeneration): a vision tower, two linear maps, an LLM.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llava
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily, selected, selection_to_hf
from mmjax.interop.table import LINEAR, Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig


def projector_from_hf(hf: Mapping[str, Any], in_width: int, width: int) -> MLPProjectorConfig:
    """The two maps between a tower of `in_width` channels and an LLM of `width`."""
    return MLPProjectorConfig(
        in_width=in_width,
        hidden=width,
        width=width,
        activation=activation_from_hf(hf, "projector_hidden_act", "gelu"),
        bias=hf.get("multimodal_projector_bias", True),
    )


def projector_to_hf(projector: Any) -> Json:
    """What `projector_from_hf` reads.

    Raises:
        ConfigError: the projector is another.
    """
    plain = isinstance(projector, MLPProjectorConfig) and projector.norm_eps is None
    if not plain or projector.hidden != projector.width:
        raise ConfigError(
            "transformers' Llava has a projector of two linear maps whose hidden width is the LLM's; "
            f"this model has {projector}"
        )
    return {
        "projector_hidden_act": ACTIVATIONS_TO_HF[projector.activation],
        "multimodal_projector_bias": projector.bias,
    }


def projector_rows(projector: MLPProjectorConfig, ours: str, theirs: str = "multi_modal_projector.") -> list[Row]:
    """The rows of the two maps; prefixes end in "/" and "."."""
    rows = []
    for mine, name in (("fc1", "linear_1"), ("fc2", "linear_2")):
        rows.append(Row(f"{ours}{mine}/kernel", f"{theirs}{name}.weight", LINEAR))
        if projector.bias:
            rows.append(Row(f"{ours}{mine}/bias", f"{theirs}{name}.bias"))
    return rows


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    tower = selected(hf, tower)
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: projector_from_hf(hf, tower.feature_width, width)},
        "media_tokens": {PORT: hf.get("image_token_id", hf.get("image_token_index", 32000))},
    }


def _write(config: MultimodalLMConfig) -> Json:
    if list(config.encoders) != [PORT]:
        raise ConfigError(f"transformers' Llava has one image port, this model has {sorted(config.encoders)}")
    tower = config.encoders[PORT]
    if not isinstance(tower, ViTConfig):
        raise ConfigError(f"transformers' Llava has a vision transformer, not {type(tower).__name__}")
    projector = projector_to_hf(config.projectors[PORT])
    return {
        **projector,
        **selection_to_hf(tower),
        "image_token_id": config.media_tokens[PORT],
        "image_token_index": config.media_tokens[PORT],
        "image_seq_length": config.num_tokens(PORT),
    }


FAMILY = VisionTextFamily(
    kind="llava",
    architecture="LlavaForConditionalGeneration",
    read=_read,
    write=_write,
    rows=lambda config: projector_rows(config.projectors[PORT], f"projectors/{PORT}/"),
)
