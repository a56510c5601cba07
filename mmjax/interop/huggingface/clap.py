"""The audio tower of CLAP (transformers' ClapAudioModel), with or without its projection, also out of the whole model.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/clap
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import ConfigError
from mmjax.encoders.clap import CLAPConfig
from mmjax.interop.huggingface import swin
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.table import CONV, LINEAR, Rewrite, Row, Shape, Transform

MODEL_TYPE = "clap_audio_model"
# The text tower, its projection and the scales are no part of an audio tower; the others are computed or counted.
IGNORE = (
    r"text_model\..*", r"text_projection\..*", r"logit_scale_[at]", r".*\.relative_position_index",
    r".*\.num_batches_tracked",
)  # fmt: skip
# What config.json does not say: ten seconds in steps of 10 ms, unless it holds num_frames or the image less.
NUM_FRAMES = 1001


def rewrites(config: CLAPConfig) -> list[Rewrite]:
    """Brings the names of a tower with a projection, and of one without, to those that the table has."""
    bare, projected = "audio_encoder.", "audio_model.audio_encoder."
    here, there = (projected, bare) if config.projection_dim else (bare, projected)
    return [(rf"^{re.escape(there)}", here)]


def config_from_hf(hf: Mapping[str, Any]) -> CLAPConfig:
    """config.json of the tower or of the whole -> our config; defaults are those of ClapAudioConfig.

    A lone tower has its projection if `architectures` says so (...WithProjection), the whole's has it.

    Raises:
        ConfigError: patches that are not square; a fusion of other kind than of published models; options that
            transformers' own model does not run with.
    """
    whole = hf["model_type"] == "clap"
    projected = whole or any("WithProjection" in name for name in hf.get("architectures") or ())
    audio = (hf.get("audio_config") or {}) if whole else hf
    shared = hf if whole else audio
    for key, value in (("patch_embed_input_channels", 1), ("flatten_patch_embeds", True)):
        if audio.get(key, value) != value:
            raise ConfigError(f"config.json: {key} {audio[key]} is not supported, only {value}")
    fusion = audio.get("enable_fusion", False)
    if fusion and audio.get("fusion_type") == "channel_map":
        raise ConfigError('config.json: fusion_type "channel_map" is not supported: its views are channels')
    image_size, num_mels = square(audio, "spec_size", 256), audio.get("num_mel_bins", 64)
    most = image_size * (image_size // num_mels)
    return CLAPConfig(
        num_frames=audio.get("num_frames", min(NUM_FRAMES, most)),
        num_mels=num_mels,
        image_size=image_size,
        patch_size=square(audio, "patch_size", 4),
        patch_stride=square(audio, "patch_stride", 4),
        width=audio.get("patch_embeds_hidden_size", 96),
        depths=tuple(audio.get("depths") or CLAPConfig.depths),
        num_heads=tuple(audio.get("num_attention_heads") or CLAPConfig.num_heads),
        window_size=audio.get("window_size", 8),
        mlp_ratio=float(audio.get("mlp_ratio", 4.0)),
        activation=activation_from_hf(audio, "hidden_act", "gelu"),
        norm_eps=audio.get("layer_norm_eps", 1e-5),
        qkv_bias=audio.get("qkv_bias", True),
        patch_norm=audio.get("enable_patch_layer_norm", True),
        fusion=fusion,
        fusion_reduction=audio.get("aff_block_r", 4),
        projection_dim=shared.get("projection_dim", 512) if projected else None,
        projection_activation=activation_from_hf(shared, "projection_hidden_act", "relu"),
    )


def config_to_hf(config: CLAPConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json of the tower alone, over the other keys of `template`."""
    template = template or {}
    out = {
        **fresh(template.get("audio_config", template)),
        "model_type": MODEL_TYPE,
        "architectures": ["ClapAudioModel" + ("WithProjection" if config.projection_dim else "")],
        "num_frames": config.num_frames,
        "num_mel_bins": config.num_mels,
        "spec_size": config.image_size,
        "patch_size": config.patch_size,
        "patch_stride": [config.patch_stride] * 2,
        "patch_embeds_hidden_size": config.width,
        "patch_embed_input_channels": 1,
        "flatten_patch_embeds": True,
        "hidden_size": config.feature_width,
        "depths": list(config.depths),
        "num_attention_heads": list(config.num_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "enable_patch_layer_norm": config.patch_norm,
        "enable_fusion": config.fusion,
        "aff_block_r": config.fusion_reduction,
        "projection_hidden_act": ACTIVATIONS_TO_HF[config.projection_activation],
    }
    if config.projection_dim:
        out["projection_dim"] = config.projection_dim
    return out


@dataclasses.dataclass(frozen=True)
class PlaceConv:
    """Ours [in, out], theirs a convolution over single places [out, in, 1, 1]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (*ours[::-1], 1, 1)

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return theirs[:, :, 0, 0].T

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return ours.T[:, :, None, None]


def table(config: CLAPConfig) -> list[Row]:
    """The rows of the tower."""
    model = "audio_model.audio_encoder." if config.projection_dim else "audio_encoder."
    patch = f"{model}patch_embed."
    rows = [
        *_batch_norm("mel_norm", f"{model}batch_norm"),
        *_map("patch_embed", f"{patch}proj", CONV),
        *norm_rows("norm", f"{model}norm"),
        *swin.stage_rows(config.swin, "swin/", model),
    ]
    if config.patch_norm:
        rows += norm_rows("patch_norm", f"{patch}norm")
    if config.fusion:
        rows += _map("cut_embed", f"{patch}mel_conv2d", CONV)
        # The gate for the whole begins with a mean over all places.
        for ours, theirs, first in (("place", "local", 0), ("whole", "global", 1)):
            for number in (1, 2):
                at, name = first + 3 * (number - 1), f"{patch}fusion_model.{theirs}_att."
                rows += _map(f"gate_{ours}/fc{number}", f"{name}{at}", PlaceConv())
                rows += _batch_norm(f"gate_{ours}/norm_{number}", f"{name}{at + 1}")
    if config.projection_dim:
        for number in (1, 2):
            rows += _map(f"projection_{number}", f"audio_projection.linear{number}", LINEAR)
    return rows


def _map(ours: str, theirs: str, kernel: Transform) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", kernel), Row(f"{ours}/bias", f"{theirs}.bias")]


def _batch_norm(ours: str, theirs: str) -> list[Row]:
    statistics = (("mean", "running_mean"), ("var", "running_var"))
    return [*norm_rows(ours, theirs), *(Row(f"{ours}/{mine}", f"{theirs}.{name}") for mine, name in statistics)]
