"""wav2vec 2.0 and HuBERT (transformers' Wav2Vec2Model and HubertModel), also from checkpoints with a head.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/wav2vec2
https://github.com/huggingface/transformers/tree/main/src/transformers/models/hubert
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError, check_choice
from mmjax.encoders.wav2vec2 import Wav2Vec2Config
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Rewrite, Row, Squeezed
from mmjax.interop.tensors import Tensors

ARCHITECTURES = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel"}
# Heads and what pretraining needs besides; a mask token that the config has no use for.
IGNORE = (
    r"(lm_head|quantizer|project_q|project_hid|projector|classifier|tdnn|objective)\..*", r"layer_weights",
    r"feature_extractor\.(weight|bias)", r"masked_spec_embed", r".*\.num_batches_tracked",
)  # fmt: skip
NORMS = {"group": "channel", "layer": "layer"}
# How much of a batch is masked in training, unless config.json says so.
MASKED = {"mask_time_prob": 0.05, "mask_feature_prob": 0.0}
# What config.json does not say: ten seconds at 16 kHz, unless it holds num_samples.
NUM_SAMPLES = 160_000


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in a model with a head to those of the encoder alone; torch's first spelling of weight normalisation."""
    return [
        (r"^(wav2vec2|hubert)\.", ""),
        (r"\.conv\.weight_g$", ".conv.parametrizations.weight.original0"),
        (r"\.conv\.weight_v$", ".conv.parametrizations.weight.original1"),
    ]


def config_from_hf(hf: Mapping[str, Any]) -> Wav2Vec2Config:
    """config.json -> our config; what it leaves out has the defaults of Wav2Vec2Config and HubertConfig.

    Raises:
        ConfigError: adapters behind or inside the blocks; another norm of the convolutions than "group" or "layer".
    """
    for key in ("add_adapter", "adapter_attn_dim"):
        if hf.get(key):
            raise ConfigError(f"config.json: {key} {hf[key]} is not supported: there are no adapters here")
    norm = hf.get("feat_extract_norm", "group")
    check_choice("config.json: feat_extract_norm", norm, tuple(NORMS))
    hubert = hf["model_type"] == "hubert"
    return Wav2Vec2Config(
        num_samples=hf.get("num_samples", NUM_SAMPLES),
        width=hf.get("hidden_size", 768),
        num_layers=hf.get("num_hidden_layers", 12),
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        conv_widths=tuple(hf.get("conv_dim") or Wav2Vec2Config.conv_widths),
        conv_kernels=tuple(hf.get("conv_kernel") or Wav2Vec2Config.conv_kernels),
        conv_strides=tuple(hf.get("conv_stride") or Wav2Vec2Config.conv_strides),
        conv_bias=hf.get("conv_bias", False),
        conv_norm=NORMS[norm],
        conv_activation=activation_from_hf(hf, "feat_extract_activation", "gelu"),
        projection_norm=hf.get("feat_proj_layer_norm", True) if hubert else True,
        position_kernel=hf.get("num_conv_pos_embeddings", 128),
        position_groups=hf.get("num_conv_pos_embedding_groups", 16),
        position_norm="batch" if hubert and hf.get("conv_pos_batch_norm") else "weight",
        pre_norm=hf.get("do_stable_layer_norm", False),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        mask_token=any(hf.get(key, default) for key, default in MASKED.items()),
    )


def config_to_hf(config: Wav2Vec2Config, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`: HuBERT's if it is one, or has its options."""
    out = fresh(template)
    hubert = not config.projection_norm or config.position_norm == "batch" or out.get("model_type") == "hubert"
    kind = "hubert" if hubert else "wav2vec2"
    # Their models have a mask token where something is ever masked.
    masked = {key: out.get(key, default) for key, default in MASKED.items()}
    if not config.mask_token:
        masked = dict.fromkeys(MASKED, 0.0)
    elif not any(masked.values()):
        masked = MASKED
    if hubert:
        out |= {"feat_proj_layer_norm": config.projection_norm, "conv_pos_batch_norm": config.position_norm == "batch"}
    return {
        **out,
        **masked,
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "num_samples": config.num_samples,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "conv_dim": list(config.conv_widths),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "num_feat_extract_layers": len(config.conv_widths),
        "conv_bias": config.conv_bias,
        "feat_extract_norm": next(theirs for theirs, ours in NORMS.items() if ours == config.conv_norm),
        "feat_extract_activation": ACTIVATIONS_TO_HF[config.conv_activation],
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "do_stable_layer_norm": config.pre_norm,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "add_adapter": False,
        "adapter_attn_dim": None,
    }


def settle(config: Wav2Vec2Config, tensors: Tensors) -> tuple[Wav2Vec2Config, Tensors]:
    """Some checkpoints of models with a head have no mask token, which config.json does not say."""
    if "masked_spec_embed" not in tensors:
        config = dataclasses.replace(config, mask_token=False)
    return config, tensors


def table(config: Wav2Vec2Config) -> list[Row]:
    """The rows of the encoder."""
    conv, block = "encoder.pos_conv_embed.conv.", "encoder.layers.{i}."
    rows = [
        *_linear_rows("projection", "feature_projection.projection"),
        *norm_rows("norm", "encoder.layer_norm"),
        *norm_rows("blocks/attn_norm", f"{block}layer_norm"),
        *norm_rows("blocks/mlp_norm", f"{block}final_layer_norm"),
        *_linear_rows("blocks/mlp/up", f"{block}feed_forward.intermediate_dense"),
        *_linear_rows("blocks/mlp/down", f"{block}feed_forward.output_dense"),
        Row("blocks/attn/o/kernel", f"{block}attention.out_proj.weight", Linear(2)),
        Row("blocks/attn/o/bias", f"{block}attention.out_proj.bias"),
        Row("positions/bias", f"{conv}bias"),
    ]
    for name in "qkv":
        rows.append(Row(f"blocks/attn/{name}/kernel", f"{block}attention.{name}_proj.weight", LINEAR))
        rows.append(Row(f"blocks/attn/{name}/bias", f"{block}attention.{name}_proj.bias", FLAT))
    if config.mask_token:
        rows.append(Row("mask_embedding", "masked_spec_embed"))
    if config.projection_norm:
        rows += norm_rows("projection_norm", "feature_projection.layer_norm")
    if config.position_norm == "weight":
        rows.append(Row("positions/gain", f"{conv}parametrizations.weight.original0", Squeezed((0, 1))))
        rows.append(Row("positions/kernel", f"{conv}parametrizations.weight.original1", CONV))
    else:
        rows.append(Row("positions/kernel", f"{conv}weight", CONV))
        rows += norm_rows("positions/norm", "encoder.pos_conv_embed.batch_norm")
        for mine, name in (("mean", "running_mean"), ("var", "running_var")):
            rows.append(Row(f"positions/norm/{mine}", f"encoder.pos_conv_embed.batch_norm.{name}"))
    for number in range(len(config.conv_widths)):
        theirs = f"feature_extractor.conv_layers.{number}."
        rows.append(Row(f"conv_{number}/kernel", f"{theirs}conv.weight", CONV))
        if config.conv_bias:
            rows.append(Row(f"conv_{number}/bias", f"{theirs}conv.bias"))
        if config.conv_norm == "layer" or not number:
            rows += norm_rows(f"conv_{number}/norm", f"{theirs}layer_norm")
    return rows


def _linear_rows(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]
