"""ResNet (transformers' ResNetModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/resnet
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError, check_choice
from mmjax.encoders.resnet import ResNetConfig
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.vit import three_channels
from mmjax.interop.table import CONV, Rewrite, Row

# A classifier is no part of an encoder; the counters are read by training alone.
IGNORE = (r"classifier\..*", r".*\.num_batches_tracked")


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names in a classifier to those of the encoder alone."""
    return [(r"^resnet\.", "")]


def config_from_hf(hf: Mapping[str, Any]) -> ResNetConfig:
    """config.json -> our config; what it leaves out has the defaults of transformers' ResNetConfig.

    config.json does not say the size of the images; 224 unless it holds image_size.

    Raises:
        ConfigError: another activation than relu, or images that do not have three channels.
    """
    three_channels(hf)
    kind = hf.get("layer_type", "bottleneck")
    check_choice("config.json: layer_type", kind, ("bottleneck", "basic"))
    if hf.get("hidden_act", "relu") != "relu":
        raise ConfigError(f"config.json: hidden_act {hf['hidden_act']!r} of a ResNet is not supported, only 'relu'")
    return ResNetConfig(
        image_size=hf.get("image_size", 224),
        stem_width=hf.get("embedding_size", 64),
        widths=tuple(hf.get("hidden_sizes") or (256, 512, 1024, 2048)),
        depths=tuple(hf.get("depths") or (3, 4, 6, 3)),
        bottleneck=kind == "bottleneck",
        downsample_in_first_stage=hf.get("downsample_in_first_stage", False),
        downsample_in_bottleneck=hf.get("downsample_in_bottleneck", False),
    )


def config_to_hf(config: ResNetConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: another epsilon than the one that ResNetModel always has.
    """
    if config.norm_eps != ResNetConfig.norm_eps:
        raise ConfigError(
            f"transformers' ResNetModel has norm_eps {ResNetConfig.norm_eps}, this has {config.norm_eps}"
        )
    return {
        **fresh(template),
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "image_size": config.image_size,
        "num_channels": 3,
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "layer_type": "bottleneck" if config.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": config.downsample_in_first_stage,
        "downsample_in_bottleneck": config.downsample_in_bottleneck,
    }


def table(config: ResNetConfig) -> list[Row]:
    """The rows of every leaf; layers behind a stage's first are stacked."""
    rows = _conv_norm("stem", "embedder.embedder")
    for stage, depth in enumerate(config.depths):
        theirs = f"encoder.stages.{stage}.layers."
        convolutions = range(3 if config.bottleneck else 2)
        for number in convolutions:
            rows += _conv_norm(f"stage_{stage}_first/conv_{number}", f"{theirs}0.layer.{number}")
            if depth > 1:
                layers = tuple(range(1, depth))
                ours = f"stage_{stage}_rest/conv_{number}"
                rows += _conv_norm(ours, theirs + "{i}.layer." + str(number), layers)
        if config.has_shortcut(stage):
            rows += _conv_norm(f"stage_{stage}_first/shortcut", f"{theirs}0.shortcut")
    return rows


def _conv_norm(ours: str, theirs: str, layers: tuple[int, ...] | None = None) -> list[Row]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    rows = [Row(f"{ours}/kernel", f"{theirs}.convolution.weight", CONV, layers)]
    for mine, name in names.items():
        rows.append(Row(f"{ours}/{mine}", f"{theirs}.normalization.{name}", layers=layers))
    return rows
