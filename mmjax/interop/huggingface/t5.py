"""T5, T5 1.1 and Flan-T5 (transformers' T5ForConditionalGeneration).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/t5
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError, nearest
from mmjax.interop.huggingface.spelling import ACTIVATIONS, ACTIVATIONS_TO_HF, Json, fresh
from mmjax.interop.huggingface.text import settle_head
from mmjax.interop.table import LINEAR, Linear, Rewrite, Row
from mmjax.interop.tensors import Tensors, WeightsError
from mmjax.model import MultimodalLMConfig

# A table that the first checkpoints hold and that nothing reads.
IGNORE = (r".*\.EncDecAttention\.relative_attention_bias\.weight",)
KEYS = {
    "vocab_size": ("vocab_size", 32128),
    "width": ("d_model", 512),
    "head_dim": ("d_kv", 64),
    "mlp_width": ("d_ff", 2048),
    "num_heads": ("num_heads", 8),
    "relative_buckets": ("relative_attention_num_buckets", 32),
    "relative_max_distance": ("relative_attention_max_distance", 128),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
}


def backbone_from_hf(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """A T5 config -> EncoderDecoderConfig; what it leaves out has the defaults of T5Config.

    Raises:
        ConfigError: a feed-forward layer that is not supported.
    """
    sizes = {ours: hf.get(theirs, default) for ours, (theirs, default) in KEYS.items()}
    encoder_layers = hf.get("num_layers", 6)
    layers = hf.get("num_decoder_layers") or encoder_layers
    activation, gated = feed_forward_from_hf(hf)
    tied = hf.get("tie_word_embeddings") is not False
    scaled = hf.get("scale_decoder_outputs", tied)
    start = hf.get("decoder_start_token_id")
    return EncoderDecoderConfig(
        **sizes,
        num_layers=layers,
        encoder_layers=None if encoder_layers == layers else encoder_layers,
        activation=activation,
        gated=gated,
        tie_embeddings=tied,
        logit_scale=sizes["width"] ** -0.5 if scaled else 1.0,
        start_token=(hf.get("pad_token_id") or 0) if start is None else start,
    )


def feed_forward_from_hf(hf: Mapping[str, Any], default: str = "relu") -> tuple[str, bool]:
    """A T5 config -> activation and gated of the MLPs.

    Raises:
        ConfigError: a feed-forward layer that is not supported.
    """
    feed = hf.get("feed_forward_proj", default)
    gated, name = feed.startswith("gated-"), feed.removeprefix("gated-")
    # What T5 calls gated-gelu is the approximation by tanh.
    name = "gelu_new" if feed == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: feed_forward_proj {feed!r} is not supported.{nearest(name, ACTIVATIONS)} Known are "
            f"{', '.join(ACTIVATIONS)}, each also with gated- before it"
        )
    return ACTIVATIONS[name], gated


def feed_forward_to_hf(activation: str, gated: bool) -> Json:
    """The keys that say what MLPs are.

    Raises:
        ConfigError: T5 cannot say it.
    """
    name = "gelu" if gated and activation == "gelu_tanh" else ACTIVATIONS_TO_HF[activation]
    if gated and activation == "gelu":
        raise ConfigError("activation 'gelu' and gated: T5 has no name for it, its gated-gelu is gelu_tanh")
    return {
        "feed_forward_proj": f"gated-{name}" if gated else name,
        "dense_act_fn": "gelu_new" if gated and name == "gelu" else name,
        "is_gated_act": gated,
    }


def backbone_to_hf(config: EncoderDecoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """EncoderDecoderConfig -> config.json, over the other keys of `template`."""
    return {
        **fresh(template),
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        "num_layers": config.depth(False),
        "num_decoder_layers": config.num_layers,
        **feed_forward_to_hf(config.activation, config.gated),
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1,
        "decoder_start_token_id": config.start_token,
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
    }


def rows(config: EncoderDecoderConfig, prefix: str = "") -> list[Row]:
    """The table of a T5 whose names all begin with `prefix`."""
    out = [Row("backbone/embed/embedding", f"{prefix}shared.weight")]
    for side in ("encoder", "decoder"):
        ours, theirs = f"backbone/{side}/", f"{prefix}{side}."
        table = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out.append(Row(f"{ours}relative/embedding", table))
        out += side_rows(ours, theirs, side == "decoder", config.gated)
    if not config.tie_embeddings:
        out.append(Row("backbone/lm_head/kernel", f"{prefix}lm_head.weight", LINEAR))
    return out


def side_rows(ours: str, theirs: str, decodes: bool, gated: bool) -> list[Row]:
    """The rows of one side without its relative positions; prefixes end in "/" and "."."""
    layer = f"{theirs}block.{{i}}.layer."
    out = [Row(f"{ours}norm/scale", f"{theirs}final_layer_norm.weight")]
    parts = [("attn", "attn_norm", "SelfAttention")]
    parts += [("cross_attn", "cross_norm", "EncDecAttention")] if decodes else []
    for number, (mine, norm, name) in enumerate(parts):
        out.append(Row(f"{ours}blocks/{norm}/scale", f"{layer}{number}.layer_norm.weight"))
        for map_name in "qkvo":
            at = f"{layer}{number}.{name}.{map_name}.weight"
            out.append(Row(f"{ours}blocks/{mine}/{map_name}/kernel", at, Linear(2 if map_name == "o" else 1)))
    feed = f"{layer}{len(parts)}."
    out.append(Row(f"{ours}blocks/mlp_norm/scale", f"{feed}layer_norm.weight"))
    maps = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    for mine, name in maps.items():
        out.append(Row(f"{ours}blocks/mlp/{mine}/kernel", f"{feed}DenseReluDense.{name}.weight", LINEAR))
    return out


def settle_backbone(
    config: EncoderDecoderConfig, tensors: Tensors, prefix: str = ""
) -> tuple[EncoderDecoderConfig, dict[str, Any]]:
    """Lets the tensors say which matrices are one, see `settle_shared` and `settle_head`."""
    copies = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    shared, head = f"{prefix}shared.weight", f"{prefix}lm_head.weight"
    tensors = settle_shared(tensors, shared, copies)
    if head not in tensors:
        # transformers 5 ties every T5 whose file has no output layer, whatever its config says.
        config = dataclasses.replace(config, tie_embeddings=True)
    return settle_head(config, tensors, shared, head)


def settle_shared(tensors: Tensors, shared: str, copies: Sequence[str]) -> dict[str, Any]:
    """The tensors with the one embedding under its name `shared` alone; files may hold it under `copies` too.

    Raises:
        WeightsError: encoder and decoder have embeddings that differ.
    """
    tensors = dict(tensors)
    for name in copies:
        if name not in tensors:
            continue
        one = tensors.pop(name)
        if not np.array_equal(np.asarray(tensors.setdefault(shared, one)), np.asarray(one)):
            raise WeightsError(f"{name} differs from {shared}: separate embeddings are not supported")
    return tensors


# What every family has, see `mmjax.interop.huggingface`.


def rewrites(config: Any = None) -> list[Rewrite]:
    """None: all versions of transformers agree on the names."""
    return []


def config_from_hf(hf: Mapping[str, Any]) -> MultimodalLMConfig:
    """config.json -> our config of a plain T5."""
    return MultimodalLMConfig(backbone_from_hf(hf))


def config_to_hf(config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return backbone_to_hf(config.backbone, template)


def table(config: MultimodalLMConfig) -> list[Row]:
    """The rows of the whole model."""
    return rows(config.backbone)


def settle(config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
    """Lets the tensors correct what the config says, see `settle_backbone`."""
    backbone, tensors = settle_backbone(config.backbone, tensors)
    return dataclasses.replace(config, backbone=backbone), tensors
