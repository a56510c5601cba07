"""Text to videos by latent diffusion, every frame a latent of its own (Wang et al., 2023, "ModelScope")."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.config import ConfigError
from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.generators.unet3d import UNet3DConfig
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, latent_sides, steps_with_room
from mmjax.pipelines.output import PipelineOutput

PIPELINE = "TextToVideoSDPipeline"
PARTS = latent_parts.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class VideoDiffusion:
    """A text-to-video model with its weights.

    Attributes:
        parts: text tower, a UNet of videos, and an autoencoder of images.
        schedule: the sampler; `dataclasses.replace(model, schedule=...)` takes another.
    """

    parts: LatentParts
    schedule: ScheduleConfig

    def __post_init__(self):
        if not isinstance(self.parts.unet, UNet3DConfig):
            raise ConfigError(f"the UNet is of kind {self.parts.unet.kind!r}, wanted is {UNet3DConfig.kind!r}")
        check_channels(self.parts, self.parts.autoencoder.latent_channels)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
    ) -> PipelineOutput:
        """Draws `.videos`, float32 [B, T, H, W, 3] from 0 to 1.

        Args:
            prompt, prompt_ids: one of them: one or several texts, or token ids int [B, T].
            negative_prompt, negative_prompt_ids: what to keep away from; nothing if neither is given.
            num_inference_steps: of the schedule.
            guidance_scale: see `guided`; at 1 and below the negative prompt counts for nothing.
            height, width: pixels; those of training if None.
            num_frames: T.
            seed: of the first latents and of samplers that add noise.
            latents: normal noise [B, T, h, w, C], channels last, to start from instead.

        Raises:
            ValueError: see `PromptReader.pair`; sides that are no multiple of the autoencoder's downsampling, latents
                of another shape, no frames, or steps below 1.
        """
        parts = self.parts
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = parts.prompts.pair(*given, guidance_scale > 1)
        sides = latent_sides((height, width), parts.unet.sample_size, parts.autoencoder.downsampling)
        steps = steps_with_room(self.schedule, num_inference_steps)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = first_noise(latents, (rows, num_frames, *sides, parts.autoencoder.latent_channels), first)
        ids, noise = parts.rows(ids, noise)
        videos = self._draw(parts.params, steps, ids, noise, np.float32(guidance_scale), rng)
        return PipelineOutput(videos=np.asarray(videos))

    @functools.cached_property
    def _draw(self) -> Any:
        parts = self.parts

        @jax.jit
        def draw(params: dict[str, Any], steps: Steps, ids, noise, scale, rng):
            denoise = guided(functools.partial(parts.denoise, params), scale, parts.condition(params, ids))
            latent = sample(denoise, steps, first_latent(steps, noise), rng)
            frames = parts.decode(params, latent.reshape(-1, *latent.shape[2:]))
            return frames.reshape(*latent.shape[:2], *frames.shape[1:])

        return draw


def load(directory: Path, dtype: str, param_dtype: str) -> VideoDiffusion:
    """Reads the directory of a diffusers TextToVideoSDPipeline; see `load_latent_parts`."""
    return VideoDiffusion(load_latent_parts(directory, dtype, param_dtype), load_schedule(directory / "scheduler"))
