"""The encoders of T5 and UMT5 alone (T5EncoderModel, UMT5EncoderModel): what reads the prompts of PixArt, SD3, Wan.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/t5
https://github.com/huggingface/transformers/tree/main/src/transformers/models/umt5
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.t5 import KEYS, feed_forward_from_hf, feed_forward_to_hf, settle_shared, side_rows
from mmjax.interop.table import Rewrite, Row
from mmjax.interop.tensors import Tensors

# Their class, model type, defaults that differ from T5's, and where our positions lie.
T5, UMT5 = "T5EncoderModel", "UMT5EncoderModel"
CLASSES = {"t5": T5, "umt5": UMT5}
DEFAULTS = {
    T5: {"num_layers": 6, "feed_forward_proj": "relu"},
    UMT5: {"num_layers": 8, "feed_forward_proj": "gated-gelu", "vocab_size": 250112, "d_ff": 1024, "num_heads": 6},
}
POSITIONS = {T5: "relative", UMT5: "relative_each"}
# A file of the whole model may be read for its encoder.
IGNORE = (r"decoder\..*", r"lm_head\.weight")


def rewrites(config: BidirectionalTextConfig) -> list[Rewrite]:
    """None: all versions of transformers agree on the names."""
    return []


def config_from_hf(hf: Mapping[str, Any]) -> BidirectionalTextConfig:
    """config.json -> our config; what it leaves out has the defaults of T5Config or UMT5Config.

    Raises:
        ConfigError: a feed-forward layer that is not supported.
    """
    kind = CLASSES[hf["model_type"]]
    hf = {**DEFAULTS[kind], **hf}
    activation, gated = feed_forward_from_hf(hf)
    return BidirectionalTextConfig(
        **{ours: hf.get(theirs, default) for ours, (theirs, default) in KEYS.items()},
        num_layers=hf["num_layers"],
        activation=activation,
        gated=gated,
        position=POSITIONS[kind],
    )


def config_to_hf(config: BidirectionalTextConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: options that these encoders have not.
    """
    mine = (config.norm, config.post_norm, config.use_bias, config.attention_scale, config.pooled)
    if mine != ("rms", False, False, 1.0, False):
        raise ConfigError(
            "T5's encoder has norm 'rms', attention_scale 1, no post_norm, no use_bias, no pooled; this has "
            f"(norm, post_norm, use_bias, attention_scale, pooled) {mine}"
        )
    (name,) = (name for name, position in POSITIONS.items() if position == config.position)
    (kind,) = (kind for kind, other in CLASSES.items() if other == name)
    return {
        **fresh(template),
        **{theirs: getattr(config, ours) for ours, (theirs, _) in KEYS.items()},
        **feed_forward_to_hf(config.activation, config.gated),
        "num_layers": config.num_layers,
        "model_type": kind,
        "architectures": [name],
    }


def settle(config: BidirectionalTextConfig, tensors: Tensors) -> tuple[BidirectionalTextConfig, dict[str, Any]]:
    """The one embedding under its one name, see `settle_shared`."""
    return config, settle_shared(tensors, "shared.weight", ["encoder.embed_tokens.weight"])


def table(config: BidirectionalTextConfig) -> list[Row]:
    """The rows of the encoder."""
    layer = "{i}" if config.position == "relative_each" else "0"
    relative = f"encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = [Row("embed/embedding", "shared.weight"), Row("relative/embedding", relative)]
    return rows + side_rows("", "encoder.", False, config.gated)
