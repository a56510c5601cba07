"""The Q-Former's keys and rows, for the families that have one (BLIP-2, InstructBLIP).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/blip_2
https://github.com/huggingface/transformers/tree/main/src/transformers/models/instructblip
"""

from collections.abc import Mapping
from typing import Any

from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf
from mmjax.interop.table import FLAT, LINEAR, Linear, Row, Squeezed
from mmjax.projectors.qformer import QFormerConfig

IGNORE = (r".*\.position_ids",)


def qformer_from_hf(
    hf: Mapping[str, Any], width: int, num_queries: int, reads_text: bool, num_features: int | None = None
) -> QFormerConfig:
    """A `qformer_config` -> QFormerConfig; what it leaves out has transformers' defaults.

    Args:
        hf: content of `qformer_config`.
        width: D of the LLM.
        num_queries: `num_query_tokens`, which stands beside `qformer_config`.
        reads_text: whether the Q-Former has text embeddings and feed-forward layers (InstructBLIP always;
            BLIP-2 where `use_qformer_text_input` says so).
        num_features: features that the encoder gives of an image.
    """
    return QFormerConfig(
        in_width=hf.get("encoder_hidden_size", 1408),
        width=width,
        num_queries=num_queries,
        query_width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        cross_attention_frequency=hf.get("cross_attention_frequency", 2),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        vocab_size=hf.get("vocab_size", 30522) if reads_text else None,
        max_positions=hf.get("max_position_embeddings", 512),
        num_features=num_features,
        dropout=hf.get("hidden_dropout_prob", 0.1),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.1),
    )


def qformer_to_hf(config: QFormerConfig) -> Json:
    """QFormerConfig -> the keys of a `qformer_config`; `model_type` is the family's."""
    out = {
        "encoder_hidden_size": config.in_width,
        "hidden_size": config.query_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "cross_attention_frequency": config.cross_attention_frequency,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_positions,
    }
    if config.vocab_size:
        out["vocab_size"] = config.vocab_size
    return out


def _linear_rows(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]


def _attention_rows(ours: str, norm: str, theirs: str) -> list[Row]:
    rows = [
        Row(f"{ours}/o/kernel", f"{theirs}.output.dense.weight", Linear(2)),
        Row(f"{ours}/o/bias", f"{theirs}.output.dense.bias"),
        *norm_rows(norm, f"{theirs}.output.LayerNorm"),
    ]
    for mine, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rows.append(Row(f"{ours}/{mine}/kernel", f"{theirs}.attention.{name}.weight", LINEAR))
        rows.append(Row(f"{ours}/{mine}/bias", f"{theirs}.attention.{name}.bias", FLAT))
    return rows


def transformer_rows(config: QFormerConfig, ours: str, theirs: str, norm: str, embeddings: str | None) -> list[Row]:
    """Rows of the Q-Former itself, without its queries and the map behind it.

    Args:
        config: of the Q-Former.
        ours, theirs: prefixes, ending in "/" and ".".
        norm: their name of the norm in front of the blocks.
        embeddings: their prefix of the text embeddings, where there are any.
    """
    block = f"{theirs}encoder.layer.{{i}}."
    rows = norm_rows(f"{ours}norm", norm) + _attention_rows(
        f"{ours}blocks/attn", f"{ours}blocks/attn_norm", f"{block}attention"
    )
    feeds = {"mlp": "_query"} | ({"text_mlp": ""} if config.vocab_size else {})
    for mine, suffix in feeds.items():
        rows += _linear_rows(f"{ours}blocks/{mine}/up", f"{block}intermediate{suffix}.dense")
        rows += _linear_rows(f"{ours}blocks/{mine}/down", f"{block}output{suffix}.dense")
        rows += norm_rows(f"{ours}blocks/{mine}_norm", f"{block}output{suffix}.LayerNorm")
    for row in _attention_rows(f"{ours}cross/attn", f"{ours}cross/norm", f"{block}crossattention"):
        rows.append(Row(row.ours, row.theirs, row.transform, config.cross_layers))
    if config.vocab_size:
        rows.append(Row(f"{ours}embedding", f"{embeddings}word_embeddings.weight"))
        rows.append(Row(f"{ours}position_embedding", f"{embeddings}position_embeddings.weight"))
    return rows


def blip2_rows(
    config: QFormerConfig, ours: str, theirs: str = "qformer.", embeddings: str = "embeddings."
) -> list[Row]:
    """The Q-Former in BLIP-2; its text embeddings, where it has any, stand outside of it."""
    return transformer_rows(config, ours, theirs, f"{theirs}layernorm", embeddings)


def instructblip_rows(config: QFormerConfig, ours: str, theirs: str = "qformer.") -> list[Row]:
    """The Q-Former in InstructBLIP, which holds its text embeddings itself."""
    embeddings = f"{theirs}embeddings."
    return transformer_rows(config, ours, theirs, f"{embeddings}layernorm", embeddings)


def around_rows(ours: str, projection: str | None = "language_projection") -> list[Row]:
    """The queries and, unless None, the map to the LLM's width; both stand beside the Q-Former in either family."""
    rows = [Row(f"{ours}queries", "query_tokens", Squeezed((0,)))]
    return rows + (_linear_rows(f"{ours}out", projection) if projection else [])
