"""CLAP as a whole (transformers' ClapModel): both towers with their projections, and the scales of both directions.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/clap
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.sound_text import SCALES, SoundTextConfig
from mmjax.interop.huggingface import clap, clap_text
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.table import Rewrite, Row

MODEL_TYPE = "clap"
IGNORE = (r".*\.relative_position_index", r".*\.num_batches_tracked", *clap_text.IGNORE)
# What both towers have and only the whole's config says.
SHARED = ("projection_dim", "projection_hidden_act")


def rewrites(config: SoundTextConfig) -> list[Rewrite]:
    """The whole has had one spelling."""
    return []


def config_from_hf(hf: Mapping[str, Any]) -> SoundTextConfig:
    """config.json -> our config; defaults are those of ClapConfig.

    Raises:
        ConfigError: see those of the towers.
    """
    audio = clap.config_from_hf(hf)
    shared = {name: hf[name] for name in SHARED if hf.get(name) is not None}
    text = {**(hf.get("text_config") or {}), **shared, "architectures": ["ClapTextModelWithProjection"]}
    if "projection_dim" not in shared:
        text["projection_dim"] = audio.projection_dim
    return SoundTextConfig(audio, clap_text.config_from_hf(text))


def config_to_hf(config: SoundTextConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: towers that transformers' whole has not, such as projections of different activations.
    """
    if config.audio.projection_activation != config.text.projection_activation:
        raise ConfigError(
            f"transformers' CLAP has one projection_hidden_act; the audio tower has "
            f"{config.audio.projection_activation!r}, the text tower {config.text.projection_activation!r}"
        )
    out = fresh(template)
    audio = clap.config_to_hf(config.audio, out.get("audio_config"))
    text = clap_text.config_to_hf(config.text, out.get("text_config"))
    shared = {name: text[name] for name in SHARED}
    for tower in (audio, text):
        del tower["architectures"]
    return {
        **out,
        "model_type": MODEL_TYPE,
        "architectures": ["ClapModel"],
        **shared,
        "audio_config": audio,
        "text_config": text,
    }


def table(config: SoundTextConfig) -> list[Row]:
    """The rows of both towers, whose names inside the whole are those that they have with a projection."""
    towers = {"audio": clap.table(config.audio), "text": clap_text.table(config.text)}
    rows = [
        dataclasses.replace(row, ours=f"{port}/{row.ours}") for port, of_tower in towers.items() for row in of_tower
    ]
    scales = zip(SCALES, ("logit_scale_a", "logit_scale_t"), strict=True)
    return rows + [Row(ours, theirs) for ours, theirs in scales]
