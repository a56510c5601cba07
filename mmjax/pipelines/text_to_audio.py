"""Text to sound by latent diffusion of spectrograms (Liu et al., 2023, "AudioLDM")."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.data.tokenizer import Tokenizer, load_tokenizer
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.generators.autoencoder import AutoencoderConfig, unscaled
from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.generators.vocoder import VocoderConfig
from mmjax.interop import diffusers, huggingface
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines.latents import first_noise, steps_with_room
from mmjax.pipelines.output import PipelineOutput
from mmjax.pipelines.placing import split_rows
from mmjax.pipelines.prompts import PromptReader

PIPELINE = "AudioLDMPipeline"
PARTS = ("text_encoder", "tokenizer", "unet", "vae", "vocoder", "scheduler")


@dataclasses.dataclass(frozen=True, eq=False)
class AudioDiffusion:
    """A text-to-sound model with its weights.

    Attributes:
        text, unet, autoencoder, vocoder: configs. The UNet reads one vector of the text; the autoencoder's images are
            spectrograms with a channel, frames along their height and mel bins along their width.
        params: {"text": ..., "unet": ..., "autoencoder": ..., "vocoder": ...}, nested dicts.
        schedule: the sampler; `dataclasses.replace(model, schedule=...)` takes another.
        tokenizer: None takes token ids alone.
        dtype: compute dtype of the text tower and the UNet; autoencoder and vocoder compute in float32.
        mesh: what the weights lie on, see `on_mesh`; None: one device.
    """

    text: BidirectionalTextConfig
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    vocoder: VocoderConfig
    params: dict[str, Any]
    schedule: ScheduleConfig
    tokenizer: Tokenizer | None = None
    dtype: str = "float32"
    mesh: Mesh | None = None

    def __post_init__(self):
        unet, autoencoder, bins = self.unet, self.autoencoder, self.vocoder.num_mels
        if unet.pooled_width != self.text.projection_dim or unet.context_width is not None:
            raise ConfigError(
                f"the UNet reads a vector of {unet.pooled_width} and a sequence of {unet.context_width}; the text "
                f"tower gives a vector of {self.text.projection_dim} alone"
            )
        channels = unet.in_channels, unet.out_channels, autoencoder.latent_channels
        if len(set(channels)) != 1 or autoencoder.image_channels != 1:
            raise ConfigError(
                f"the UNet reads {channels[0]} channels and gives {channels[1]}, latents have {channels[2]}, which "
                f"must be one number; spectrograms have {autoencoder.image_channels}, which must be 1"
            )
        if bins % autoencoder.downsampling:
            raise ConfigError(f"the vocoder's {bins} mel bins are no multiple of {autoencoder.downsampling}")

    @property
    def prompts(self) -> PromptReader:
        """Prompts to the token ids of the tower."""
        return PromptReader(self.tokenizer, self.text.max_positions, self.text.pad_id)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 2.5,
        audio_length_in_s: float | None = None,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
    ) -> PipelineOutput:
        """Draws `.audios`, float32 [B, samples] from -1 to 1, with their `sampling_rate`.

        Args:
            prompt, prompt_ids: one of them: one or several texts, or token ids int [B, T].
            negative_prompt, negative_prompt_ids: what to keep away from; nothing if neither is given.
            num_inference_steps: of the schedule.
            guidance_scale: see `guided`; at 1 and below the negative prompt counts for nothing.
            audio_length_in_s: seconds; those of training if None.
            seed: of the first latents and of samplers that add noise.
            latents: normal noise [B, h, w, C], channels last, to start from instead: h for frames, w for mel bins.

        Raises:
            ValueError: see `PromptReader.pair`; less sound than one place of the latent, latents of another shape, or
                steps below 1.
        """
        by, vocoder = self.autoencoder.downsampling, self.vocoder
        frame = vocoder.hop / vocoder.sample_rate
        seconds = self.unet.sample_size * by * frame if audio_length_in_s is None else audio_length_in_s
        if seconds < by * frame:
            raise ValueError(f"audio_length_in_s must be at least {by * frame:g}, got {seconds}")
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = self.prompts.pair(*given, guidance_scale > 1)
        sides = math.ceil(int(seconds / frame) / by), vocoder.num_mels // by
        steps = steps_with_room(self.schedule, num_inference_steps)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = first_noise(latents, (rows, *sides, self.autoencoder.latent_channels), first)
        ids, noise = split_rows(self.mesh, ids, noise)
        sounds = np.asarray(self._draw(self.params, steps, ids, noise, np.float32(guidance_scale), rng))
        return PipelineOutput(audios=sounds[:, : int(seconds * vocoder.sample_rate)], sampling_rate=vocoder.sample_rate)

    @functools.cached_property
    def _draw(self) -> Any:
        tower = huggingface.model_of(self.text, dtype=self.dtype)
        unet = UNet(self.unet, jnp.dtype(self.dtype))
        autoencoder = diffusers.MODULES[type(self.autoencoder)](self.autoencoder)
        vocoder = huggingface.model_of(self.vocoder)

        @jax.jit
        def draw(params: dict[str, Any], steps: Steps, ids, noise, scale, rng):
            vector = tower(params["text"], ids, ids != self.text.pad_id)["embeds"].astype(jnp.float32)
            vector = vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)

            def denoise(x, time, condition):
                return unet.apply({"params": params["unet"]}, x, time, condition)

            denoise = guided(denoise, scale, Condition(None, pooled=vector))
            latent = unscaled(self.autoencoder, sample(denoise, steps, first_latent(steps, noise), rng))
            spectrograms = autoencoder.apply({"params": params["autoencoder"]}, latent, method="decode")
            return vocoder(params["vocoder"], spectrograms[..., 0])

        return draw


def load(directory: Path, dtype: str, param_dtype: str) -> AudioDiffusion:
    """Reads the directory of a diffusers AudioLDMPipeline; autoencoder's and vocoder's weights stay float32.

    Raises:
        FileNotFoundError: a part's files are not there.
        ConfigError: a text tower or a vocoder of another kind, or an option that is not supported.
        WeightsError: see `diffusers.load`.
    """
    text, vocoder = (
        huggingface.load(directory / name, kind)
        for name, kind in (("text_encoder", param_dtype), ("vocoder", "float32"))
    )
    if not isinstance(text.config, BidirectionalTextConfig) or not text.config.projection_dim:
        raise ConfigError(f"{directory}/text_encoder is no text tower of CLAP with its projection")
    if not isinstance(vocoder.config, VocoderConfig):
        raise ConfigError(f"{directory}/vocoder holds a {type(vocoder.config).__name__}, not a vocoder")
    unet, autoencoder = diffusers.load(directory / "unet", param_dtype), diffusers.load(directory / "vae")
    read = {"text": text, "unet": unet, "autoencoder": autoencoder, "vocoder": vocoder}
    words = directory / "tokenizer"
    return AudioDiffusion(
        **{name: part.config for name, part in read.items()},
        params={name: part.params for name, part in read.items()},
        schedule=load_schedule(directory / "scheduler"),
        tokenizer=load_tokenizer(str(words)) if words.is_dir() else None,
        dtype=dtype,
    )
