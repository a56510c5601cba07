"""Encoders with their weights, for users who want features or similarities without a language model."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.config import check_choice
from mmjax.encoders import EncoderConfig
from mmjax.encoders.dual import DualEncoder, DualEncoderConfig, TextConfig, Tower
from mmjax.encoders.sound_text import SoundText, SoundTextConfig
from mmjax.interop import huggingface
from mmjax.interop.huggingface.input_items import integers, raw_values
from mmjax.save import save

# What transformers' processors call the values of one item, by kind of media.
VALUES = ("pixel_values", "input_features", "input_values")
EMBEDS = {"pixel_values": "image_embeds"}


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """Outputs of an encoder, in transformers' names; what the model does not give is None."""

    logits_per_image: jax.Array | None = None
    logits_per_text: jax.Array | None = None
    image_embeds: jax.Array | None = None
    text_embeds: jax.Array | None = None
    audio_embeds: jax.Array | None = None
    last_hidden_state: jax.Array | None = None
    pooler_output: jax.Array | None = None
    logits_per_audio: jax.Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderModel:
    """A tower of images, sounds or texts, or two in one space (CLIP, SigLIP, CLAP), with weights.

    Attributes:
        config: of the tower or towers.
        params: nested dicts of arrays, blocks stacked.
        dtype: compute dtype.
        hf_config: config.json of the checkpoint.
    """

    config: DualEncoderConfig | SoundTextConfig | EncoderConfig | TextConfig
    params: dict[str, Any]
    dtype: str = "float32"
    hf_config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: None = None

    @functools.cached_property
    def module(self) -> DualEncoder | SoundText | Tower:
        """The pure functions."""
        return huggingface.model_of(self.config, dtype=self.dtype)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        return jax.jit(self.module.__call__)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_attention_mask: Any = None,
        spatial_shapes: Any = None,
        is_longer: Any = None,
        **values: Any,
    ) -> EncoderOutput:
        """Runs the towers that the model has.

        Args:
            input_ids: int [B, T], for a text tower.
            attention_mask: [B, T] of texts, or of sounds as samples [I, samples]; 0 is padding.
            values: one of VALUES, as the processor gives it: images [I, 3, H, W] or [I, H, W, 3]; videos
                [I, frames, 3, H, W]; spectrograms or samples of sounds; patches [I, N, numbers] of images of any
                shape (SigLIP 2) with the next two.
            pixel_attention_mask: [I, N], 0 is padding.
            spatial_shapes: int [I, 2], rows and columns of patches.
            is_longer: bool [I] or [I, 1], sounds of which CLAP's fusion mixes cuts in.

        Raises:
            ValueError: an input that the model needs is missing, or one that it does not know.
        """
        wants_media = not isinstance(self.config, TextConfig)
        wants_text = isinstance(self.config, DualEncoderConfig | SoundTextConfig | TextConfig)
        given = {name: value for name, value in values.items() if value is not None}
        for name in given:
            check_choice("input", name, VALUES)
        if (wants_media and len(given) != 1) or (wants_text and input_ids is None):
            wanted = [*(["input_ids"] if wants_text else []), *(["one of " + ", ".join(VALUES)] if wants_media else [])]
            raise ValueError(f"this model needs {' and '.join(wanted)}; given are {sorted(given)}")
        mask = None if attention_mask is None else integers("attention_mask", attention_mask) > 0
        tokens = integers("input_ids", input_ids) if wants_text else None
        if not wants_media:
            return _output(self._forward(self.params, tokens, mask), "text_embeds")
        ((name, array),) = given.items()
        if isinstance(self.config, DualEncoderConfig):
            pixels = raw_values(name, array, self.config.image)
            return EncoderOutput(*self._forward(self.params, tokens, mask, pixels))
        longer = None if is_longer is None else np.asarray(is_longer, bool).reshape(-1)
        if isinstance(self.config, SoundTextConfig):
            sounds = raw_values(name, array, self.config.audio)
            given = () if longer is None or not self.config.audio.fusion else (longer,)
            return EncoderOutput(**self._forward(self.params, tokens, mask, sounds, *given))
        if name == "pixel_values" and np.ndim(array) == 3:
            if pixel_attention_mask is None or spatial_shapes is None:
                raise ValueError("patches as pixel_values need pixel_attention_mask and spatial_shapes")
            seen = integers("pixel_attention_mask", pixel_attention_mask) > 0
            more = (seen, integers("spatial_shapes", spatial_shapes))
            array = np.asarray(array, np.float32)
        else:
            array, more = raw_values(name, array, self.config), () if mask is None else (mask,)
            if longer is not None and getattr(self.config, "fusion", False):
                more = (longer,)
        return _output(self._forward(self.params, array, *more), EMBEDS.get(name, "audio_embeds"))

    def save_pretrained(self, directory: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the model in transformers layout, or as an mmjax directory."""
        save(self, directory, format)


def _output(found: Mapping[str, Any], embeds: str) -> EncoderOutput:
    """What a tower gives, in transformers' names and axes: there maps lie channels first."""
    found = {name: x.transpose(0, 3, 1, 2) if x.ndim == 4 else x for name, x in found.items()}
    return EncoderOutput(
        last_hidden_state=found["last_hidden_state"], pooler_output=found.get("pooled"), **{embeds: found.get("embeds")}
    )
