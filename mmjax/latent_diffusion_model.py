"""Text to images by latent diffusion: a text tower, a UNet, an autoencoder and a schedule (Rombach et al., 2022)."""

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.data.tokenizer import Tokenizer, load_tokenizer
from mmjax.encoders.text import TextEncoderConfig
from mmjax.generators.autoencoder import AutoencoderConfig, unscaled
from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules import make_steps
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.generators.tiny_autoencoder import TinyAutoencoderConfig
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.interop import diffusers, huggingface
from mmjax.interop.diffusers.scheduler import load_schedule

INDEX = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
# What a pipeline's directory holds of what is here.
PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
# Evaluations of the denoiser that one compiled program has room for; longer runs compile one of twice the room.
ROOM = 64


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A text-to-image model with its weights.

    Attributes:
        text, unet, autoencoder: configs of the parts; the UNet's condition is as wide as the text tower.
        params: {"text": ..., "unet": ..., "autoencoder": ...}, nested dicts.
        schedule: the sampler.
        tokenizer: None takes token ids alone.
        pad_id: what fills a prompt up to the tower's window.
        dtype: compute dtype of the text tower and the UNet; images are decoded in float32.
    """

    text: TextEncoderConfig
    unet: UNetConfig
    autoencoder: AutoencoderConfig | TinyAutoencoderConfig
    params: dict[str, Any]
    schedule: ScheduleConfig
    tokenizer: Tokenizer | None = None
    pad_id: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        if self.unet.context_width != self.text.width:
            raise ConfigError(
                f"the UNet reads {self.unet.context_width} channels, the text tower has {self.text.width}"
            )
        if self.unet.out_channels != self.autoencoder.latent_channels:
            raise ConfigError(
                f"the UNet gives {self.unet.out_channels} channels, latents have {self.autoencoder.latent_channels}"
            )

    def __call__(
        self,
        prompt: str | Sequence[str] | np.ndarray,
        negative_prompt: str | Sequence[str] | np.ndarray | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        latents: Any = None,
    ) -> np.ndarray:
        """Images float32 [B, H, W, 3] from 0 to 1.

        Args:
            prompt: one or several texts, or token ids int [B, T].
            negative_prompt: what to keep away from; nothing if None.
            num_inference_steps: of the schedule.
            guidance_scale: see `guided`; at 1 the negative prompt counts for nothing.
            height, width: pixels; those of training if None.
            seed: of the first latents and of samplers that add noise.
            latents: normal noise [B, h, w, C] to start from instead.

        Raises:
            ValueError: sides that are no multiple of the autoencoder's downsampling, latents of another shape, as
                many negative prompts as there are no prompts, or steps below 1.
        """
        tokens = self.tokens(prompt)
        negative = self.tokens("" if negative_prompt is None and self.tokenizer else negative_prompt, len(tokens))
        if len(negative) != len(tokens):
            raise ValueError(f"{len(negative)} negative prompts for {len(tokens)} prompts")
        side, by = self.unet.sample_size * self.autoencoder.downsampling, self.autoencoder.downsampling
        shape = (height or side, width or side)
        if shape[0] % by or shape[1] % by:
            raise ValueError(f"images of {shape[0]} x {shape[1]} pixels; sides must be multiples of {by}")
        shape = (len(tokens), shape[0] // by, shape[1] // by, self.autoencoder.latent_channels)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = jax.random.normal(first, shape) if latents is None else jnp.asarray(latents, jnp.float32)
        if noise.shape != shape:
            raise ValueError(f"latents are {tuple(noise.shape)}; wanted {shape}")
        rows, room = int(make_steps(self.schedule, num_inference_steps).count), ROOM
        while room < rows:
            room *= 2
        steps = make_steps(self.schedule, num_inference_steps, capacity=room)
        both = np.concatenate([negative, tokens])
        return np.asarray(self._draw(self.params, steps, both, noise, np.float32(guidance_scale), rng))

    @functools.cached_property
    def _draw(self) -> Any:
        tower = huggingface.model_of(self.text, dtype=self.dtype)
        unet = UNet(self.unet, jnp.dtype(self.dtype))
        autoencoder = diffusers.MODULES[type(self.autoencoder)](self.autoencoder)

        @jax.jit
        def draw(params: dict[str, Any], steps: Steps, tokens, noise, scale, rng):
            sequence = tower(params["text"], tokens)["last_hidden_state"]

            def denoise(x, time, sequence):
                return unet.apply({"params": params["unet"]}, x, time, Condition(sequence))

            latent = sample(guided(denoise, scale, sequence), steps, first_latent(steps, noise), rng)
            latent = unscaled(self.autoencoder, latent)
            images = autoencoder.apply({"params": params["autoencoder"]}, latent, method="decode")
            return jnp.clip(images / 2 + 0.5, 0, 1)

        return draw

    def tokens(self, prompt: Any, rows: int = 1) -> np.ndarray:
        """Prompts as int32 [B, window of the text tower], `rows` times where there is a single one.

        A prompt that is longer is cut off, with a warning that shows what is lost.

        Raises:
            ValueError: text without a tokenizer, or ids that are not [B, T] within the window.
        """
        room = self.text.max_positions
        if isinstance(prompt, np.ndarray) or (prompt is not None and not isinstance(prompt, str) and _are_ids(prompt)):
            ids = np.asarray(prompt, np.int32)
            if ids.ndim != 2 or ids.shape[1] > room:
                raise ValueError(f"token ids are {ids.shape}; wanted [B, T] with at most {room} of them")
            return np.pad(ids, ((0, 0), (0, room - ids.shape[1])), constant_values=self.pad_id)
        if self.tokenizer is None:
            raise ValueError("there is no tokenizer: give prompt and negative_prompt as token ids [B, T]")
        texts = [prompt] * rows if isinstance(prompt, str) else list(prompt)
        out = np.full((len(texts), room), self.pad_id, np.int32)
        for row, text in zip(out, texts, strict=True):
            before, behind = self.tokenizer.frame
            ids, most = self.tokenizer.encode(text), room - len(before) - len(behind)
            if len(ids) > most:
                lost = self.tokenizer.decode(ids[most:])
                warnings.warn(f"the prompt has {len(ids)} tokens, read are {most}; cut off is {lost!r}", stacklevel=3)
            framed = [*before, *ids[:most], *behind]
            row[: len(framed)] = framed
        return out


def _are_ids(prompt: Any) -> bool:
    return not any(isinstance(item, str) for item in prompt)


def load_latent_diffusion(
    directory: str | os.PathLike, dtype: str = "float32", param_dtype: str | None = None, skip: Sequence[str] = ()
) -> LatentDiffusion:
    """Reads the directory of a diffusers StableDiffusionPipeline.

    Args:
        directory: holds model_index.json and a folder for each part.
        dtype, param_dtype: of computation and of the weights; the autoencoder's stay float32.
        skip: names of parts that the pipeline has and that are to be left out, such as "safety_checker".

    Raises:
        FileNotFoundError: a part's files are not there.
        ConfigError: another pipeline, or parts that are not here and not in `skip`; they are named.
        WeightsError: see `diffusers.load`.
    """
    place = Path(directory)
    if not (place / INDEX).is_file():
        raise FileNotFoundError(f"{place} has no {INDEX}")
    index = json.loads((place / INDEX).read_text(encoding="utf-8"))
    if index.get("_class_name") != PIPELINE:
        raise ConfigError(f"{place}/{INDEX}: pipeline {index.get('_class_name')!r} is not supported, only {PIPELINE}")
    there = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None}
    # What only prepares images for the safety checker goes with it.
    unknown = sorted(there - {*PARTS, *skip} - ({"feature_extractor"} if "safety_checker" in skip else set()))
    if unknown:
        raise ConfigError(f"{place}: mmjax has no {', '.join(unknown)}; give skip={tuple(unknown)} to do without")
    weights = param_dtype or dtype
    text = huggingface.load(place / "text_encoder", weights)
    if not isinstance(text.config, TextEncoderConfig):
        raise ConfigError(f"{place}/text_encoder holds a {type(text.config).__name__}, not a text tower of CLIP")
    unet = diffusers.load(place / "unet", weights)
    autoencoder = diffusers.load(place / "vae")
    tokenizer = load_tokenizer(str(place / "tokenizer")) if (place / "tokenizer").is_dir() else None
    pad = None if tokenizer is None else tokenizer.pad_id
    params = {"text": text.params, "unet": unet.params, "autoencoder": autoencoder.params}
    schedule = load_schedule(place / "scheduler")
    return LatentDiffusion(
        text.config, unet.config, autoencoder.config, params, schedule, tokenizer, pad or 0, dtype
    )
