"""Text to images by latent diffusion (Rombach et al., 2022)."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, latent_sides, steps_with_room
from mmjax.pipelines.output import PipelineOutput

PIPELINE = "StableDiffusionPipeline"
PARTS = latent_parts.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A text-to-image model with its weights.

    Attributes:
        parts: text tower, UNet and autoencoder.
        schedule: the sampler; `dataclasses.replace(model, schedule=...)` takes another.
        guidance_scale: of calls that do not say.
    """

    parts: LatentParts
    schedule: ScheduleConfig
    guidance_scale: float = 7.5

    def __post_init__(self):
        check_channels(self.parts, self.parts.autoencoder.latent_channels)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
    ) -> PipelineOutput:
        """Draws `.images`, float32 [B, H, W, 3] from 0 to 1.

        Args:
            prompt, prompt_ids: one of them: one or several texts, or token ids int [B, T].
            negative_prompt, negative_prompt_ids: what to keep away from; nothing if neither is given.
            num_inference_steps: of the schedule.
            guidance_scale: see `guided`; at 1 and below the negative prompt counts for nothing; the model's if None.
            height, width: pixels; those of training if None.
            seed: of the first latents and of samplers that add noise.
            latents: normal noise [B, h, w, C], channels last, to start from instead.

        Raises:
            ValueError: see `PromptReader.pair`; sides that are no multiple of the autoencoder's downsampling, latents
                of another shape, or steps below 1.
        """
        parts, scale = self.parts, self.guidance_scale if guidance_scale is None else guidance_scale
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = parts.prompts.pair(*given, scale > 1)
        sides = latent_sides((height, width), parts.unet.sample_size, parts.autoencoder.downsampling)
        steps = steps_with_room(self.schedule, num_inference_steps)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = first_noise(latents, (rows, *sides, parts.autoencoder.latent_channels), first)
        ids, noise = parts.rows(ids, noise)
        images = parts.compiled(draw)(parts.params, steps, ids, noise, np.float32(scale), rng)
        return PipelineOutput(np.asarray(images))


def draw(parts: LatentParts, params: dict[str, Any], steps: Steps, ids, noise, scale, rng) -> jax.Array:
    """Noise [B, h, w, C] and token ids -> images; what `LatentDiffusion` compiles."""
    denoise = guided(functools.partial(parts.denoise, params), scale, parts.condition(params, ids, noise))
    return parts.decode(params, sample(denoise, steps, first_latent(steps, noise), rng))


def load(directory: Path, dtype: str, param_dtype: str) -> LatentDiffusion:
    """Reads the directory of a diffusers StableDiffusionPipeline; see `load_latent_parts`."""
    return LatentDiffusion(load_latent_parts(directory, dtype, param_dtype), load_schedule(directory / "scheduler"))
