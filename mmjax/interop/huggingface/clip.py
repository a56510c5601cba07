"""CLIP: the dual encoder (CLIPModel) and either tower alone, with or without its projection.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/clip
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.dual import DualEncoderConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Rewrite, Row

IGNORE = (r".*\.position_ids",)
# An end-of-text id of 2 in a config of this family is an old mistake that transformers keeps alive: it
# means "the highest id of the row". https://github.com/huggingface/transformers/pull/24773
LEGACY_EOS = 2


def rewrites(config: Any) -> list[Rewrite]:
    """A lone tower's names with the prefix they have in the pair."""
    if isinstance(config, ViTConfig):
        return [(r"^(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.", r"vision_model.\1.")]
    if isinstance(config, TextEncoderConfig):
        return [(r"^(embeddings|encoder|final_layer_norm|head)\.", r"text_model.\1.")]
    return []


def vision_from_hf(hf: Mapping[str, Any], projection_dim: int | None = None) -> ViTConfig:
    """A `clip_vision_model` config -> ViTConfig; what it leaves out has the defaults of CLIPVisionConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels.
    """
    if hf.get("num_channels", 3) != 3:
        raise ConfigError(f"config.json: num_channels {hf['num_channels']} is not supported, only 3")
    return ViTConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 32),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf, "hidden_act", "quick_gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        projection_dim=projection_dim,
    )


def vision_to_hf(config: ViTConfig) -> Json:
    """ViTConfig -> the keys of a `clip_vision_model` config.

    Raises:
        ConfigError: the tower has options that CLIP's has not.
    """
    mine = (config.class_token, config.pre_norm, config.patch_bias, config.final_norm, config.pool)
    if mine != (True, True, False, False, "class"):
        raise ConfigError(
            "CLIP's tower has class_token and pre_norm, no patch_bias, no final_norm, and pool 'class'; "
            f"this has class_token={mine[0]}, pre_norm={mine[1]}, patch_bias={mine[2]}, "
            f"final_norm={mine[3]}, pool={mine[4]!r}"
        )
    return {"model_type": "clip_vision_model", **vision_sizes(config)}


def vision_sizes(config: ViTConfig) -> Json:
    """The keys that CLIP's and SigLIP's vision configs share."""
    return {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
    }


def text_from_hf(hf: Mapping[str, Any], projection_dim: int | None = None) -> TextEncoderConfig:
    """A `clip_text_model` config -> TextEncoderConfig; defaults are those of CLIPTextConfig."""
    eos = hf.get("eos_token_id", 49407)
    if not isinstance(eos, int):
        raise ConfigError(f"config.json: eos_token_id {eos!r} of a CLIP text tower must be one id")
    return TextEncoderConfig(
        vocab_size=hf.get("vocab_size", 49408),
        width=hf.get("hidden_size", 512),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 8),
        mlp_width=hf.get("intermediate_size", 2048),
        max_positions=hf.get("max_position_embeddings", 77),
        activation=activation_from_hf(hf, "hidden_act", "quick_gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        eos_token=None if eos == LEGACY_EOS else eos,
        projection_dim=projection_dim,
    )


def text_to_hf(config: TextEncoderConfig) -> Json:
    """TextEncoderConfig -> the keys of a `clip_text_model` config.

    Raises:
        ConfigError: the tower has options that CLIP's has not.
    """
    if not config.causal or config.pool != "eos" or config.projection_bias:
        raise ConfigError(
            "transformers' CLIP text tower is causal, pools at the end-of-text token, projects without bias"
        )
    if config.eos_token == LEGACY_EOS:
        raise ConfigError(
            "transformers reads an eos_token_id of 2 as 'the highest id', so token 2 cannot end a text"
        )
    eos = LEGACY_EOS if config.eos_token is None else config.eos_token
    return {"model_type": "clip_text_model", **text_sizes(config), "eos_token_id": eos}


def text_sizes(config: TextEncoderConfig) -> Json:
    """The keys that CLIP's and SigLIP's text configs share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
    }


def config_from_hf(hf: Mapping[str, Any]) -> DualEncoderConfig | ViTConfig | TextEncoderConfig:
    """config.json of the pair or of a tower -> our config.

    A lone tower has its projection if `architectures` says so (...WithProjection).
    """
    kind = hf["model_type"]
    projected = any("WithProjection" in name for name in hf.get("architectures") or ())
    projection_dim = hf.get("projection_dim", 512)
    if kind == "clip_vision_model":
        return vision_from_hf(hf, projection_dim if projected else None)
    if kind == "clip_text_model":
        return text_from_hf(hf, projection_dim if projected else None)
    # Files of 2022 hold a second copy of a tower's keys, which counts in full where it is there.
    text = hf.get("text_config_dict") or hf.get("text_config") or {}
    vision = hf.get("vision_config_dict") or hf.get("vision_config") or {}
    return DualEncoderConfig(vision_from_hf(vision, projection_dim), text_from_hf(text, projection_dim))


def config_to_hf(config: Any, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that CLIP has not.
    """
    out = fresh(template)
    if isinstance(config, ViTConfig | TextEncoderConfig):
        towers = {
            ViTConfig: ("CLIPVisionModel", vision_to_hf),
            TextEncoderConfig: ("CLIPTextModel", text_to_hf),
        }
        name, to_hf = towers[type(config)]
        out |= to_hf(config)
        out["architectures"] = [name + ("WithProjection" if config.projection_dim else "")]
        if config.projection_dim:
            out["projection_dim"] = config.projection_dim
        return out
    if config.logit_bias:
        raise ConfigError("transformers' CLIP has no logit_bias")
    width = config.image.projection_dim
    if width is None or config.text.projection_dim is None:
        raise ConfigError("transformers' CLIP has a projection on both towers")
    for stale in ("text_config_dict", "vision_config_dict"):
        out.pop(stale, None)
    return {
        **out,
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": width,
        "vision_config": {
            **fresh(out.get("vision_config")),
            **vision_to_hf(config.image),
            "projection_dim": width,
        },
        "text_config": {**fresh(out.get("text_config")), **text_to_hf(config.text), "projection_dim": width},
    }


def block_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of the pre-norm blocks that all these towers share; `theirs` holds "{i}"."""
    table = [
        Row(f"{ours}attn/o/kernel", f"{theirs}self_attn.out_proj.weight", Linear(2)),
        Row(f"{ours}attn/o/bias", f"{theirs}self_attn.out_proj.bias"),
        *norm_rows(f"{ours}attn_norm", f"{theirs}layer_norm1"),
        *norm_rows(f"{ours}mlp_norm", f"{theirs}layer_norm2"),
        *mlp_rows(f"{ours}mlp", f"{theirs}mlp"),
    ]
    for name in "qkv":
        table.append(Row(f"{ours}attn/{name}/kernel", f"{theirs}self_attn.{name}_proj.weight", LINEAR))
        table.append(Row(f"{ours}attn/{name}/bias", f"{theirs}self_attn.{name}_proj.bias", FLAT))
    return table


def norm_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of a layer norm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def mlp_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of an MLP up -> down that transformers names fc1 -> fc2."""
    return [
        row
        for mine, name in (("up", "fc1"), ("down", "fc2"))
        for row in (
            Row(f"{ours}/{mine}/kernel", f"{theirs}.{name}.weight", LINEAR),
            Row(f"{ours}/{mine}/bias", f"{theirs}.{name}.bias"),
        )
    ]


def tower_rows(config: ViTConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of an image tower without its projection or attention pool; prefixes end in "/" and "."."""
    table = [
        Row(f"{ours}patch_embed/kernel", f"{theirs}embeddings.patch_embedding.weight", CONV),
        Row(f"{ours}position_embedding", f"{theirs}embeddings.position_embedding.weight"),
        *block_rows(f"{ours}blocks/", theirs + "encoder.layers.{i}."),
        *norm_rows(f"{ours}post_norm", f"{theirs}post_layernorm"),
    ]
    if config.patch_bias:
        table.append(Row(f"{ours}patch_embed/bias", f"{theirs}embeddings.patch_embedding.bias"))
    if config.class_token:
        table.append(Row(f"{ours}class_embedding", f"{theirs}embeddings.class_embedding"))
    if config.pre_norm:
        # The name is spelled so in every checkpoint.
        table += norm_rows(f"{ours}pre_norm", f"{theirs}pre_layrnorm")
    return table


def text_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of a text tower without its projection; prefixes end in "/" and "."."""
    return [
        Row(f"{ours}embed/embedding", f"{theirs}embeddings.token_embedding.weight"),
        Row(f"{ours}position_embedding", f"{theirs}embeddings.position_embedding.weight"),
        *block_rows(f"{ours}blocks/", theirs + "encoder.layers.{i}."),
        *norm_rows(f"{ours}final_norm", f"{theirs}final_layer_norm"),
    ]


def table(config: DualEncoderConfig | ViTConfig | TextEncoderConfig) -> list[Row]:
    """The rows of the pair, or of a tower alone."""
    pair = isinstance(config, DualEncoderConfig)
    rows = [Row("logit_scale", "logit_scale")] if pair else []
    image = config.image if pair else config
    text = config.text if pair else config
    if isinstance(image, ViTConfig):
        ours = "image/" if pair else ""
        rows += tower_rows(image, ours, "vision_model.")
        if image.projection_dim:
            rows.append(Row(f"{ours}projection/kernel", "visual_projection.weight", LINEAR))
    if isinstance(text, TextEncoderConfig):
        ours = "text/" if pair else ""
        rows += text_rows(ours, "text_model.")
        if text.projection_dim:
            rows.append(Row(f"{ours}projection/kernel", "text_projection.weight", LINEAR))
    return rows
