"""Janus and Janus-Pro (transformers' JanusForConditionalGeneration): SigLIP to see, VQ codes to draw, one LLM.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/janus

Codes have an embedding and an output layer of their own, so their token ids lie behind the vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.huggingface import janus_vision, janus_vqgan
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.huggingface.vision_text import PORT, VisionTextFamily
from mmjax.interop.table import LINEAR, Row
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

PLACEHOLDER = 100581
# LlamaConfig's, where config.json is silent.
VOCABULARY = 32000
# Our map -> theirs, of the codes' embedding and of their output layer.
MAPS = {
    "in_fc1": "generation_aligner.fc1",
    "in_fc2": "generation_aligner.hidden_layers.0",
    "out_fc1": "generation_head.proj_out",
    "out_fc2": "generation_head.vision_head",
}


def _two_maps(where: str, hf: Mapping[str, Any], key: str, width: int) -> None:
    """Raises ConfigError unless a config's maps are two, and as wide as the LLM."""
    if hf.get(key, 2) != 2 or hf.get("projection_dim", 2048) != width:
        raise ConfigError(
            f"config.json: {where} has {key} {hf.get(key, 2)} and projection_dim {hf.get('projection_dim', 2048)}; "
            f"supported are 2 and the LLM's width {width}"
        )


def _read(hf: Mapping[str, Any], tower: ViTConfig, width: int) -> dict[str, Any]:
    vision, codes = hf.get("vision_config") or {}, hf.get("vq_config") or {}
    _two_maps("vision_config", vision, "depth", width)
    _two_maps("vq_config", codes, "num_hidden_layers", width)
    if codes.get("image_token_embed_dim", 2048) != width:
        raise ConfigError(f"config.json: vq_config.image_token_embed_dim must be the LLM's width {width}")
    side, activation = tower.grid_size, activation_from_hf(vision, "hidden_act", "gelu")
    if vision.get("num_image_tokens", 576) != side * side:
        raise ConfigError(
            f"config.json: vision_config.num_image_tokens {vision.get('num_image_tokens', 576)}; an image is of "
            f"{side} x {side} codes"
        )
    return {
        "encoders": {PORT: tower},
        "projectors": {PORT: MLPProjectorConfig(tower.feature_width, width, width, activation)},
        "media_tokens": {PORT: hf.get("image_token_id", PLACEHOLDER)},
        "codes": ImageCodesConfig(
            # An image of the VQ autoencoder has as many codes as the tower's has patches, whatever it says itself.
            autoencoder=janus_vqgan.config_from_hf({**codes, "num_patches": side}),
            width=width,
            grid=(side, side),
            first=(hf.get("text_config") or {}).get("vocab_size", VOCABULARY),
            own=True,
            port="image_out",
            activation=activation_from_hf(codes, "hidden_act", "gelu"),
        ),
    }


def _write(config: MultimodalLMConfig) -> Json:
    tower, projector, codes = config.encoders.get(PORT), config.projectors.get(PORT), config.codes
    kinds = isinstance(tower, ViTConfig) and isinstance(projector, MLPProjectorConfig) and codes is not None
    if list(config.encoders) != [PORT] or not kinds or not isinstance(codes.autoencoder, VQAutoencoderConfig):
        raise ConfigError(
            "transformers' Janus has one vision transformer, two maps behind it, and images written as codes; this "
            f"model has { {port: part.kind for port, part in config.encoders.items()} } and codes {codes}"
        )
    width = config.backbone.width
    wanted = MLPProjectorConfig(tower.feature_width, width, width, tower.activation)
    if projector != wanted:
        raise ConfigError(f"transformers' Janus would have the projector {wanted}, this model has {projector}")
    return {
        "image_token_id": config.media_tokens[PORT],
        "vq_config": {
            **janus_vqgan.config_to_hf(codes.autoencoder),
            "projection_dim": width,
            "image_token_embed_dim": width,
            "num_hidden_layers": 2,
            "hidden_act": ACTIVATIONS_TO_HF[codes.activation],
        },
    }


def _rows(config: MultimodalLMConfig) -> list[Row]:
    rows = [
        dataclasses.replace(row, ours=f"codes/autoencoder/{row.ours}", theirs=f"model.vqmodel.{row.theirs}")
        for row in janus_vqgan.table(config.codes.autoencoder)
    ]
    rows.append(Row("codes/embedding", "model.generation_embeddings.weight"))
    maps = {f"codes/{ours}": theirs for ours, theirs in MAPS.items()}
    maps |= {f"projectors/{PORT}/fc1": "aligner.fc1", f"projectors/{PORT}/fc2": "aligner.hidden_layers.0"}
    for ours, theirs in maps.items():
        rows.append(Row(f"{ours}/kernel", f"model.{theirs}.weight", LINEAR))
        rows.append(Row(f"{ours}/bias", f"model.{theirs}.bias"))
    return rows


class JanusFamily(VisionTextFamily):
    """Whose tower's config also says how wide the projector is, and how many codes an image has."""

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        out = super().config_to_hf(config, template)
        more = {
            "projection_dim": config.backbone.width,
            "depth": 2,
            "num_image_tokens": config.num_tokens(PORT),
        }
        return {**out, "vision_config": {**out["vision_config"], **more}}


FAMILY = JanusFamily(
    kind="janus",
    architecture="JanusForConditionalGeneration",
    read=_read,
    write=_write,
    rows=_rows,
    pieces=("aligner", "vqmodel", "generation_embeddings", "generation_aligner", "generation_head"),
    vision={},
    tied=True,
    towers={PORT: "model.vision_model."},
    tower=janus_vision,
    root="model.",
)
