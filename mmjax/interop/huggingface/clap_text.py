"""The text tower of CLAP (transformers' ClapTextModel), with or without its projection, as AudioLDM reads prompts.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/clap
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh
from mmjax.interop.table import FLAT, LINEAR, Linear, Rewrite, Row

MODEL_TYPE = "clap_text_model"
# Counted, not learnt.
IGNORE = (r".*\.position_ids", r".*\.token_type_ids", r"position_ids", r"token_type_ids")


def rewrites(config: BidirectionalTextConfig) -> list[Rewrite]:
    """Brings the names of a tower with a projection, and of one without, to those that the table has."""
    if config.projection_dim:
        return [(r"^(embeddings|encoder|pooler)\.", r"text_model.\1.")]
    return [(r"^text_model\.", "")]


def config_from_hf(hf: Mapping[str, Any]) -> BidirectionalTextConfig:
    """config.json -> our config; defaults are those of ClapTextConfig.

    It has its projection if `architectures` says so (...WithProjection).

    Raises:
        ConfigError: heads that do not divide the width, or no token that pads.
    """
    width, heads = hf.get("hidden_size", 768), hf.get("num_attention_heads", 12)
    if width % heads:
        raise ConfigError(f"config.json: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    pad = hf.get("pad_token_id", 1)
    if pad is None:
        raise ConfigError("config.json: pad_token_id must be a token: positions are counted behind it")
    projected = any("WithProjection" in name for name in hf.get("architectures") or ())
    return BidirectionalTextConfig(
        vocab_size=hf.get("vocab_size", 50265),
        width=width,
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=heads,
        head_dim=width // heads,
        mlp_width=hf.get("intermediate_size", 3072),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        gated=False,
        norm="layer",
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        post_norm=True,
        use_bias=True,
        attention_scale=None,
        position="learned",
        table_rows=hf.get("max_position_embeddings", 514),
        pad_id=pad,
        token_types=hf.get("type_vocab_size", 1),
        pooled=True,
        projection_dim=hf.get("projection_dim", 512) if projected else None,
        projection_activation=activation_from_hf(hf, "projection_hidden_act", "relu"),
    )


def config_to_hf(config: BidirectionalTextConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that the tower has not.
    """
    mine = (config.gated, config.norm, config.post_norm, config.use_bias, config.attention_scale, config.pooled)
    if mine != (False, "layer", True, True, None, True) or config.head_dim * config.num_heads != config.width:
        raise ConfigError(
            "CLAP's text tower has post_norm, pooled, use_bias, norm 'layer', no gated, no attention_scale, and heads "
            f"as wide as it is; this has (gated, norm, post_norm, use_bias, attention_scale, pooled) {mine}"
        )
    out = {
        **fresh(template),
        "model_type": MODEL_TYPE,
        "architectures": ["ClapTextModel" + ("WithProjection" if config.projection_dim else "")],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.table_rows,
        "pad_token_id": config.pad_id,
        "type_vocab_size": config.token_types,
        "projection_hidden_act": ACTIVATIONS_TO_HF[config.projection_activation],
    }
    return {**out, "projection_dim": config.projection_dim} if config.projection_dim else out


def table(config: BidirectionalTextConfig) -> list[Row]:
    """The rows of the tower."""
    model = "text_model." if config.projection_dim else ""
    embeddings, layer = f"{model}embeddings.", f"{model}encoder.layer.{{i}}."
    rows = [
        Row("embed/embedding", f"{embeddings}word_embeddings.weight"),
        Row("positions/embedding", f"{embeddings}position_embeddings.weight"),
        Row("positions/types", f"{embeddings}token_type_embeddings.weight"),
        *norm_rows("positions/norm", f"{embeddings}LayerNorm"),
        *norm_rows("blocks/attn_norm", f"{layer}attention.output.LayerNorm"),
        *norm_rows("blocks/mlp_norm", f"{layer}output.LayerNorm"),
        Row("blocks/attn/o/kernel", f"{layer}attention.output.dense.weight", Linear(2)),
        Row("blocks/attn/o/bias", f"{layer}attention.output.dense.bias"),
        *_map("blocks/mlp/up", f"{layer}intermediate.dense"),
        *_map("blocks/mlp/down", f"{layer}output.dense"),
        *_map("pool", f"{model}pooler.dense"),
    ]
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rows.append(Row(f"blocks/attn/{letter}/kernel", f"{layer}attention.self.{name}.weight", LINEAR))
        rows.append(Row(f"blocks/attn/{letter}/bias", f"{layer}attention.self.{name}.bias", FLAT))
    if config.projection_dim:
        for number in (1, 2):
            rows += _map(f"projection_{number}", f"text_projection.linear{number}")
    return rows


def _map(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]
