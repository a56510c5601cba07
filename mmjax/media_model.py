"""Vocoders and VQ autoencoders with their weights, for users who want sounds or codes without a language model."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.generators.part_model import PartModel
from mmjax.generators.vocoder import VocoderConfig
from mmjax.interop import huggingface
from mmjax.save import save


@dataclasses.dataclass(frozen=True, eq=False)
class MediaModel:
    """What both have in common.

    Attributes:
        config: of the part.
        params: nested dicts of arrays.
        dtype: compute dtype.
        hf_config: config.json of the checkpoint.
    """

    config: Any
    params: dict[str, Any]
    dtype: str = "float32"
    hf_config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: None = None

    @functools.cached_property
    def module(self) -> PartModel:
        """The pure functions."""
        return huggingface.model_of(self.config, dtype=self.dtype)

    def save_pretrained(self, directory: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the model in transformers layout, or as an mmjax directory."""
        save(self, directory, format)


class VocoderModel(MediaModel):
    """Spectrograms to sound (HiFi-GAN)."""

    @functools.cached_property
    def _run(self) -> Callable[..., jax.Array]:
        return jax.jit(self.module.__call__)

    def __call__(self, spectrogram: Any) -> jax.Array:
        """Logarithmic mel spectrograms [B, T, M] or [T, M] -> waveforms float32 [B, samples] or [samples], -1 to 1.

        Raises:
            ValueError: another number of channels.
        """
        values = np.asarray(spectrogram, np.float32)
        sounds = self._run(self.params, values if values.ndim == 3 else values[None])
        return sounds if values.ndim == 3 else sounds[0]


class CodecModel(MediaModel):
    """Media to codes and back (the VQ tokenizers of Janus, Chameleon and Emu3)."""

    @functools.cached_property
    def _encode(self) -> Callable[..., jax.Array]:
        return jax.jit(self.module.encode)

    @functools.cached_property
    def _decode(self) -> Callable[..., jax.Array]:
        return jax.jit(self.module.decode)

    def encode(self, media: Any) -> jax.Array:
        """Images float [B, H, W, 3] or videos [B, T, H, W, 3] from -1 to 1 -> codes int32 [B, h, w] or [B, t, h, w]."""
        return self._encode(self.params, np.asarray(media, np.float32))

    def decode(self, codes: Any) -> jax.Array:
        """Codes int -> media, about -1 to 1.

        Raises:
            ValueError: codes that the codebook does not have; a model without a decoder (Chameleon's).
        """
        return self._decode(self.params, np.asarray(codes, np.int32))


def media_model(config: Any) -> type[MediaModel]:
    """The class of a config."""
    return VocoderModel if isinstance(config, VocoderConfig) else CodecModel
