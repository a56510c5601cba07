"""Idefics2 (transformers' Idefics2ForConditionalGeneration): images of any shape, a Perceiver resampler, Mistral.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/idefics2
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import idefics_vision
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import LINEAR, Linear, Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.perceiver import PerceiverConfig

# Our option -> their key and what Idefics2PerceiverConfig assumes.
KEYS = {
    "num_latents": ("resampler_n_latents", 64),
    "num_layers": ("resampler_depth", 3),
    "num_heads": ("resampler_n_heads", 16),
    "num_kv_heads": ("num_key_value_heads", 4),
    "head_dim": ("resampler_head_dim", 96),
}


def _perceiver(tower: ViTConfig, text: DecoderConfig, **options: Any) -> PerceiverConfig:
    """The resampler as the family has it, the MLP before it that of the LLM."""
    return PerceiverConfig(
        in_width=tower.feature_width,
        width=text.width,
        latent_width=text.width,
        mlp_width=4 * text.width,
        gated=True,
        norm="rms",
        input_map="gated_mlp",
        input_hidden=text.mlp_width,
        input_activation=text.activation,
        **options,
    )


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    text = hf.get("text_config") or {"model_type": FAMILY.text}
    backbone = TEXT[text.get("model_type", FAMILY.text)].decoder_from_hf(text)
    perceiver = hf.get("perceiver_config") or {}
    options = {ours: perceiver.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
    # A resampler of another width than the LLM's is one whose config.json says neither: it has the LLM's.
    same = perceiver.get("hidden_size", 4096) == width
    projector = _perceiver(
        tower,
        backbone,
        activation=activation_from_hf(perceiver, "hidden_act", "silu"),
        norm_eps=perceiver.get("rms_norm_eps", 1e-6) if same else backbone.norm_eps,
        **options,
    )
    return {
        "encoders": {PORT: dataclasses.replace(tower, packed=True)},
        "projectors": {PORT: projector},
        "media_tokens": {PORT: hf.get("image_token_id", 32001)},
    }


def _write(config: MultimodalLMConfig) -> Json:
    tower, projector = config.encoders.get(PORT), config.projectors.get(PORT)
    kinds = isinstance(tower, ViTConfig) and isinstance(projector, PerceiverConfig)
    if list(config.encoders) != [PORT] or not kinds:
        raise ConfigError(
            f"transformers' Idefics2 has a Perceiver resampler at the port {PORT!r} alone, this model has "
            f"{ {port: type(part).__name__ for port, part in config.projectors.items()} }"
        )
    own = {name: getattr(projector, name) for name in (*KEYS, "activation", "norm_eps")}
    wanted = _perceiver(tower, config.backbone, **own)
    if wanted != projector:
        raise ConfigError(f"transformers' Idefics2 would have the projector {wanted}, this model has {projector}")
    return {
        "image_token_id": config.media_tokens[PORT],
        "perceiver_config": {
            "model_type": "idefics2_perceiver",
            "hidden_act": ACTIVATIONS_TO_HF[projector.activation],
            "hidden_size": projector.width,
            "rms_norm_eps": projector.norm_eps,
            **{theirs: getattr(projector, ours) for ours, (theirs, _) in KEYS.items()},
        },
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    ours, theirs = f"projectors/{PORT}/", "model.connector."
    block, layer = f"{ours}blocks/", theirs + "perceiver_resampler.layers.{i}."
    rows = [
        Row(f"{ours}latents", f"{theirs}perceiver_resampler.latents"),
        Row(f"{ours}norm/scale", f"{theirs}perceiver_resampler.norm.weight"),
        Row(f"{block}attn_norm/scale", f"{layer}input_latents_norm.weight"),
        Row(f"{block}context_norm/scale", f"{layer}input_context_norm.weight"),
        Row(f"{block}mlp_norm/scale", f"{layer}post_attention_layernorm.weight"),
    ]
    for name in "qkvo":
        transform = Linear(2) if name == "o" else LINEAR
        rows.append(Row(f"{block}attn/{name}/kernel", f"{layer}self_attn.{name}_proj.weight", transform))
    for name in ("gate", "up", "down"):
        rows.append(Row(f"{block}mlp/{name}/kernel", f"{layer}mlp.{name}_proj.weight", LINEAR))
        rows.append(Row(f"{ours}input/{name}/kernel", f"{theirs}modality_projection.{name}_proj.weight", LINEAR))
    return rows


FAMILY = VisionTextFamily(
    kind="idefics2",
    architecture="Idefics2ForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    pieces=("connector",),
    text="mistral",
    vision=idefics_vision.IDEFICS2,
    towers={PORT: "model.vision_model."},
    tower=idefics_vision,
    language="text_model",
    root="model.",
)
