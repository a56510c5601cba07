"""Images changed after a text: noised part of the way, and drawn from there (SDEdit; Meng et al., 2022)."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.generators.sampling import guided, sample
from mmjax.generators.schedules import levels_at
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, skipped_steps, steps_with_room
from mmjax.pipelines.output import PipelineOutput
from mmjax.pipelines.pictures import pixels_or_latents

PIPELINE = "StableDiffusionImg2ImgPipeline"
PARTS = latent_parts.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class ImageToImage:
    """A model that changes images, with its weights: `ImageToImage(model.parts, model.schedule)` of a LatentDiffusion.

    Attributes:
        parts: text tower, UNet and autoencoder.
        schedule: the sampler.
        strength, guidance_scale: of calls that do not say.
    """

    parts: LatentParts
    schedule: ScheduleConfig
    strength: float = 0.8
    guidance_scale: float = 7.5

    def __post_init__(self):
        check_channels(self.parts, self.parts.autoencoder.latent_channels)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        strength: float | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
    ) -> PipelineOutput:
        """Draws `.images`, float32 [B, H, W, 3] from 0 to 1, of the size of `image`.

        Args:
            image: see `pixels`; or scaled latents float [B, h, w, C].
            strength: how much of the schedule is run, from 0 to 1: 1 leaves little of the image.
            latents: normal noise [B, h, w, C], channels last, that the image is noised with.

        The others are as in `LatentDiffusion`.

        Raises:
            ValueError: see `PromptReader.pair`, `pixels`, `skipped_steps` and `Autoencoder.encode`.
        """
        parts, strength = self.parts, self.strength if strength is None else strength
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = parts.prompts.pair(*given, guidance_scale > 1)
        pixels = pixels_or_latents(image, rows, parts.autoencoder.latent_channels)
        start = skipped_steps(num_inference_steps, strength)
        steps = steps_with_room(self.schedule, num_inference_steps, start)
        levels = np.asarray(levels_at(self.schedule, num_inference_steps, start), np.float32)
        first, drawn, rng = jax.random.split(jax.random.key(seed), 3)
        noise = first_noise(latents, parts.latent_shape(pixels), first)
        scale = np.float32(guidance_scale)
        ids, pixels, noise = parts.rows(ids, pixels, noise)
        images = parts.compiled(draw)(parts.params, steps, levels, ids, pixels, noise, scale, drawn, rng)
        return PipelineOutput(np.asarray(images))


def draw(
    parts: LatentParts, params: dict[str, Any], steps: Steps, levels, ids, pixels, noise, scale, drawn, rng
) -> jax.Array:
    """Images, noise and token ids -> images; what `ImageToImage` compiles."""
    latent = levels[0] * parts.given(params, pixels, drawn) + levels[1] * noise
    denoise = guided(functools.partial(parts.denoise, params), scale, parts.condition(params, ids, noise))
    return parts.decode(params, sample(denoise, steps, latent, rng))


def load(directory: Path, dtype: str, param_dtype: str) -> ImageToImage:
    """Reads the directory of a diffusers StableDiffusionImg2ImgPipeline; see `load_latent_parts`."""
    return ImageToImage(load_latent_parts(directory, dtype, param_dtype), load_schedule(directory / "scheduler"))
