"""LLaVA 1.5 (transformers' LlavaForConditionalGeneration): CLIP or SigLIP, two linear maps, Llama or Qwen2.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llava
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import clip, llama, qwen2, siglip
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head, text_family
from mmjax.interop.table import LINEAR, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

IGNORE = TextFamily.IGNORE
PORT = "image"
TEXT: dict[str, TextFamily] = {"llama": llama.FAMILY, "qwen2": qwen2.FAMILY}
VISION: dict[str, ModuleType] = {"clip_vision_model": clip, "siglip_vision_model": siglip}
# LlavaConfig's own image tower, where config.json holds none: CLIP ViT-L/14 at 336 pixels.
DEFAULT_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def rewrites(config: Any = None) -> list[Rewrite]:
    """Brings the spellings of memory, disk and hub to the hub's, such as `vision_tower.vision_model.`."""
    return [
        (r"^model\.(vision_tower|language_model|multi_modal_projector)\.", r"\1."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^language_model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    ]


def _part(
    hf: Mapping[str, Any], key: str, families: Mapping[str, Any], default: Json
) -> tuple[Any, Json]:
    part = hf.get(key) or default
    kind = part.get("model_type", default["model_type"])
    if kind not in families:
        raise ConfigError(
            f"config.json: {key}.model_type {kind!r} is not supported; supported are {', '.join(families)}"
        )
    return families[kind], part


def config_from_hf(hf: Mapping[str, Any]) -> MultimodalLMConfig:
    """config.json -> our config with the one port "image".

    Raises:
        ConfigError: parts or options that are not supported.
    """
    text_family, text = _part(hf, "text_config", TEXT, {"model_type": "llama"})
    vision_family, vision = _part(hf, "vision_config", VISION, DEFAULT_VISION)
    tied = hf.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    backbone = text_family.decoder_from_hf({**text, "tie_word_embeddings": tied})
    layers = hf.get("vision_feature_layer", -2)
    strategy = hf.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ConfigError(
            f"config.json: vision_feature_select_strategy {strategy!r} is neither 'default' nor 'full'"
        )
    tower = vision_family.vision_from_hf(vision)
    # "default" drops the first token whatever it is: in a tower without class token, the first patch.
    dropped = "patches" if tower.class_token else "no_first"
    tower = dataclasses.replace(
        tower,
        feature_layers=tuple(layers) if isinstance(layers, list | tuple) else (layers,),
        feature_strategy=dropped if strategy == "default" else "full",
    )
    projector = MLPProjectorConfig(
        in_width=tower.feature_width,
        hidden=backbone.width,
        width=backbone.width,
        activation=activation_from_hf(hf, "projector_hidden_act", "gelu"),
        bias=hf.get("multimodal_projector_bias", True),
    )
    token = hf.get("image_token_id", hf.get("image_token_index", 32000))
    return MultimodalLMConfig(backbone, {PORT: tower}, {PORT: projector}, {PORT: token})


def _port(config: MultimodalLMConfig) -> str:
    """The one port of a model that LLaVA can express."""
    if len(config.encoders) != 1:
        raise ConfigError(f"transformers' Llava has one image port, this model has {sorted(config.encoders)}")
    (port,) = config.encoders
    tower, projector = config.encoders[port], config.projectors[port]
    if not isinstance(tower, ViTConfig):
        raise ConfigError(
            f"transformers' Llava export knows CLIP and SigLIP towers, not {type(tower).__name__}"
        )
    if not isinstance(projector, MLPProjectorConfig) or projector.hidden != projector.width:
        raise ConfigError(
            "transformers' Llava has a projector of two linear maps whose hidden width is the LLM's; "
            f"this model has {projector}"
        )
    return port


def _families(config: MultimodalLMConfig) -> tuple[TextFamily, ModuleType]:
    tower = config.encoders[_port(config)]
    return text_family(config.backbone, TEXT), clip if tower.class_token else siglip


def config_to_hf(config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: the model is not one that LLaVA can express.
    """
    port = _port(config)
    text, vision = _families(config)
    tower, projector = config.encoders[port], config.projectors[port]
    out = fresh(template)
    out.pop("image_token_id", None)
    layers = tower.feature_layers
    return {
        **out,
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": text.decoder_to_hf(config.backbone, out.get("text_config")),
        "vision_config": {**fresh(out.get("vision_config")), **vision.vision_to_hf(tower)},
        "tie_word_embeddings": config.backbone.tie_embeddings,
        "image_token_index": config.media_tokens[port],
        "image_seq_length": config.num_tokens(port),
        "projector_hidden_act": ACTIVATIONS_TO_HF[projector.activation],
        "multimodal_projector_bias": projector.bias,
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": "full" if tower.feature_strategy == "full" else "default",
    }


def table(config: MultimodalLMConfig) -> list[Row]:
    """The rows of the whole model, with the names that the hub uses."""
    port = _port(config)
    text, vision = _families(config)
    tower_rows = siglip.tower_rows if vision is siglip else clip.vision_rows
    ours, theirs = f"projectors/{port}/", "multi_modal_projector."
    rows = text.rows(config.backbone, "language_model.model.", "language_model.lm_head.weight")
    rows += tower_rows(config.encoders[port], f"encoders/{port}/", "vision_tower.vision_model.")
    for mine, name in (("fc1", "linear_1"), ("fc2", "linear_2")):
        rows.append(Row(f"{ours}{mine}/kernel", f"{theirs}{name}.weight", LINEAR))
        if config.projectors[port].bias:
            rows.append(Row(f"{ours}{mine}/bias", f"{theirs}{name}.bias"))
    return rows


def settle(config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
    """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
    backbone, tensors = settle_head(
        config.backbone, tensors, "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    )
    return dataclasses.replace(config, backbone=backbone), tensors
