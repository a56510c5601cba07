"""One component of a pipeline with its weights, called with diffusers' names of arguments.

Arrays lie channels last, as everywhere in mmjax, in and out: latents [B, h, w, C] (of videos [B, T, h, w, C]), images
[B, H, W, 3]; diffusers has [B, C, h, w].
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.data.contracts import Condition
from mmjax.generators.autoencoder import Moments
from mmjax.generators.controlnet import ControlNetConfig
from mmjax.interop import diffusers

# diffusers' added_cond_kwargs -> what they are in a `Condition`: its pooled vector, or extras.
ADDED = {"text_embeds": "pooled", "time_ids": "sizes", "resolution": "resolution", "aspect_ratio": "aspect_ratio"}


@dataclasses.dataclass(frozen=True)
class Sample:
    """`sample`: a prediction, or decoded images."""

    sample: jax.Array


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Latents of images, not scaled.

    Attributes:
        mean: float [B, h, w, C].
        logvar: logarithm of the variance, of the same shape; None where the encoder gives no distribution.
    """

    mean: jax.Array
    logvar: jax.Array | None = None

    @property
    def latents(self) -> jax.Array:
        """The likeliest ones."""
        return self.mean

    @property
    def latent_dist(self) -> "Encoded":
        """Where diffusers has the moments."""
        return self


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What a ControlNet adds to a UNet's maps: those on the way down, the first one first, and the middle."""

    down_block_res_samples: tuple[jax.Array, ...]
    mid_block_res_sample: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """What denoisers and autoencoders have in common.

    Attributes:
        config: ours.
        params: nested dicts of arrays.
        dtype: compute dtype.
        hf_config: config.json of the checkpoint.
    """

    config: Any
    params: dict[str, Any]
    dtype: str = "float32"
    hf_config: Mapping[str, Any] | None = None

    @functools.cached_property
    def module(self) -> Any:
        """The pure functions, a flax module."""
        return diffusers.MODULES[type(self.config)](self.config, jnp.dtype(self.dtype))

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes a directory that diffusers' `from_pretrained` loads, with the same outputs."""
        diffusers.save(directory, self.config, self.params, self.hf_config)

    @functools.cached_property
    def _programs(self) -> dict[str, Callable[..., Any]]:
        return {}

    def _run(self, method: str, *inputs: Any) -> Any:
        """A method of the module, compiled once for each of them and each shape."""
        if method not in self._programs:

            @jax.jit
            def run(params, *inputs):
                return self.module.apply({"params": params}, *inputs, method=method)

            self._programs[method] = run
        return self._programs[method](self.params, *inputs)


class Denoiser(Component):
    """A UNet or a transformer that predicts noise."""

    def __call__(
        self,
        sample: Any = None,
        timestep: Any = None,
        encoder_hidden_states: Any = None,
        class_labels: Any = None,
        encoder_attention_mask: Any = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        pooled_projections: Any = None,
        hidden_states: Any = None,
        down_block_additional_residuals: Sequence[Any] | None = None,
        mid_block_additional_residual: Any = None,
    ) -> Sample:
        """The prediction, as `.sample`.

        Args:
            sample: noisy latents [B, h, w, C] or [B, T, h, w, C], as the sampler says; transformers of diffusers call
                it `hidden_states`.
            timestep: a number, or one a row [B].
            encoder_hidden_states: float [B, N, D], what is to be shown.
            class_labels: whole numbers [B], or for a UNet that embeds a vector float [B, P].
            encoder_attention_mask: [B, N], 0 is padding.
            added_cond_kwargs: SDXL's {"text_embeds": [B, P], "time_ids": [B, S]}, or PixArt's {"resolution": [B, 2],
                "aspect_ratio": [B, 1]}.
            pooled_projections: float [B, P], the pooled vector of Stable Diffusion 3.
            down_block_additional_residuals, mid_block_additional_residual: what a ControlNet gives, both or none.

        Raises:
            ValueError: both or none of `sample` and `hidden_states`, no timestep, or see the module of the config.
        """
        if (sample is None) == (hidden_states is None) or timestep is None:
            raise ValueError("give sample (or hidden_states, not both) and timestep")
        x = jnp.asarray(sample if hidden_states is None else hidden_states)
        times = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), x.shape[:1])
        given = (encoder_hidden_states, class_labels, encoder_attention_mask, added_cond_kwargs, pooled_projections)
        condition = _condition(*given)
        if (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise ValueError("give down_block_additional_residuals and mid_block_additional_residual, both or none")
        if down_block_additional_residuals is not None:
            residuals = (*map(jnp.asarray, down_block_additional_residuals), jnp.asarray(mid_block_additional_residual))
            extras = {**(condition.extras or {}), "residuals": residuals}
            condition = dataclasses.replace(condition, extras=extras)
        return Sample(self._run("__call__", x, times, condition))


def _condition(
    sequence: Any, class_labels: Any, attention_mask: Any, added_cond_kwargs: Mapping[str, Any] | None, pooled: Any
) -> Condition:
    """What a denoiser is conditioned on, from diffusers' arguments."""
    added = dict(added_cond_kwargs or {})
    unknown = sorted({*added} - {*ADDED})
    if unknown:
        raise ValueError(f"added_cond_kwargs: {', '.join(unknown)} is not known; known are {', '.join(ADDED)}")
    extras = {ADDED[name]: jnp.asarray(value) for name, value in added.items() if value is not None}
    pooled = extras.pop("pooled", pooled)
    if class_labels is not None:
        class_labels = jnp.asarray(class_labels)
        if jnp.issubdtype(class_labels.dtype, jnp.integer):
            extras["classes"] = class_labels
        else:
            pooled = class_labels
    mask = None if attention_mask is None else jnp.asarray(attention_mask) > 0
    sequence, pooled = (None if part is None else jnp.asarray(part) for part in (sequence, pooled))
    return Condition(sequence, mask, pooled, extras or None)


class ControlModel(Component):
    """A ControlNet."""

    def __call__(
        self,
        sample: Any,
        timestep: Any,
        encoder_hidden_states: Any = None,
        controlnet_cond: Any = None,
        conditioning_scale: float = 1.0,
        class_labels: Any = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
    ) -> Residuals:
        """What is added to a UNet's maps, `.down_block_res_samples` and `.mid_block_res_sample`.

        Args:
            controlnet_cond: the picture, float [B, H, W, 3] from 0 to 1, channels last.
            conditioning_scale: what the residuals are multiplied with.
            guess_mode: whether the first ones less than the last, see `ControlNet`.

        The others are as in `Denoiser`.
        """
        x = jnp.asarray(sample)
        times = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), x.shape[:1])
        condition = _condition(encoder_hidden_states, class_labels, None, added_cond_kwargs, None)
        picture = None if controlnet_cond is None else jnp.asarray(controlnet_cond)
        scale, guess = jnp.float32(conditioning_scale), jnp.bool_(guess_mode)
        *down, middle = self._run("__call__", x, times, condition, picture, scale, guess)
        return Residuals(tuple(down), middle)


class AutoencoderModel(Component):
    """Images to latents and back."""

    def encode(self, x: Any) -> Encoded:
        """Images float [B, H, W, 3] from -1 to 1 -> `.mean` and `.logvar` of their latents [B, h, w, C], not scaled."""
        found = self._run("encode", jnp.asarray(x))
        return Encoded(found.mean, found.log_variance) if isinstance(found, Moments) else Encoded(found)

    def decode(self, z: Any) -> Sample:
        """Latents [B, h, w, C], not scaled -> images [B, H, W, 3], about -1 to 1, as `.sample`."""
        return Sample(self._run("decode", jnp.asarray(z)))


ComponentModel = Denoiser | ControlModel | AutoencoderModel


def is_component(directory: Path) -> bool:
    """Whether a directory's config.json names a class of diffusers."""
    path = directory / "config.json"
    return path.is_file() and '"_class_name"' in path.read_text(encoding="utf-8", errors="replace")


def load_component(
    directory: str | os.PathLike, dtype: str = "float32", param_dtype: str | None = None
) -> ComponentModel:
    """Reads a component's directory; errors as in `mmjax.interop.diffusers.load`."""
    found = diffusers.load(directory, param_dtype or dtype)
    if isinstance(found.config, ControlNetConfig):
        kind = ControlModel
    else:
        kind = AutoencoderModel if hasattr(diffusers.MODULES[type(found.config)], "decode") else Denoiser
    return kind(found.config, found.params, dtype, found.hf_config)
