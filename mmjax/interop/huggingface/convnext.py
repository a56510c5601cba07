"""ConvNeXt (transformers' ConvNextModel) and ConvNeXt V2 (ConvNextV2Model).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/convnext
https://github.com/huggingface/transformers/tree/main/src/transformers/models/convnextv2
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.convnext import ConvNeXtConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import three_channels
from mmjax.interop.table import CONV, LINEAR, Rewrite, Row, Squeezed

# A classifier is no part of an encoder.
IGNORE = (r"classifier\..*",)


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in a classifier to those of the encoder alone."""
    return [(r"^convnext(v2)?\.", "")]


def config_from_hf(hf: Mapping[str, Any]) -> ConvNeXtConfig:
    """config.json -> our config; what it leaves out has transformers' defaults.

    Raises:
        ConfigError: images that are not square or do not have three channels.
    """
    three_channels(hf)
    second = hf["model_type"] == "convnextv2"
    scale = float(hf.get("layer_scale_init_value", 1e-6))
    return ConvNeXtConfig(
        image_size=square(hf, "image_size", 224),
        patch_size=square(hf, "patch_size", 4),
        widths=tuple(hf.get("hidden_sizes") or (96, 192, 384, 768)),
        depths=tuple(hf.get("depths") or (3, 3, 9, 3)),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        layer_scale=scale if scale > 0 and not second else None,
        response_norm=second,
    )


def config_to_hf(config: ConvNeXtConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: layer_scale together with response_norm, which neither version has.
    """
    second = config.response_norm
    if second and config.layer_scale is not None:
        raise ConfigError("transformers' ConvNextV2Model has response_norm and no layer_scale, this has both")
    return {
        **fresh(template),
        "model_type": "convnextv2" if second else "convnext",
        "architectures": ["ConvNextV2Model" if second else "ConvNextModel"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "num_stages": len(config.widths),
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        **({} if second else {"layer_scale_init_value": config.layer_scale or 0.0}),
    }


def table(config: ConvNeXtConfig) -> list[Row]:
    """The rows of every leaf."""
    rows = [
        *_conv_rows("stem", "embeddings.patch_embeddings"),
        *norm_rows("stem_norm", "embeddings.layernorm"),
        *norm_rows("norm", "layernorm"),
    ]
    for stage in range(len(config.widths)):
        ours, theirs = f"stage_{stage}/", f"encoder.stages.{stage}."
        if stage:
            rows += norm_rows(f"down_{stage}_norm", f"{theirs}downsampling_layer.0")
            rows += _conv_rows(f"down_{stage}", f"{theirs}downsampling_layer.1")
        theirs += "layers.{i}."
        rows += [
            Row(f"{ours}kernel", f"{theirs}dwconv.weight", CONV),
            Row(f"{ours}bias", f"{theirs}dwconv.bias"),
            *norm_rows(f"{ours}norm", f"{theirs}layernorm"),
        ]
        for mine, name in (("up", "pwconv1"), ("down", "pwconv2")):
            rows.append(Row(f"{ours}{mine}/kernel", f"{theirs}{name}.weight", LINEAR))
            rows.append(Row(f"{ours}{mine}/bias", f"{theirs}{name}.bias"))
        if config.layer_scale is not None:
            rows.append(Row(f"{ours}scale", f"{theirs}layer_scale_parameter"))
        if config.response_norm:
            alone = Squeezed((0, 1, 2))
            rows.append(Row(f"{ours}response_norm/scale", f"{theirs}grn.weight", alone))
            rows.append(Row(f"{ours}response_norm/bias", f"{theirs}grn.bias", alone))
    return rows


def _conv_rows(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", CONV), Row(f"{ours}/bias", f"{theirs}.bias")]
