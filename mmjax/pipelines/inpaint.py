"""Parts of images drawn anew after a text.

Of a UNet that reads latents alone, what is known is put back, noised, behind every step (RePaint without its jumps;
Lugmayr et al., 2022). A UNet made for this reads the mask and the latents of what is known beside the noisy ones
(Rombach et al., 2022, section 4.5).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.contracts import Condition
from mmjax.generators.sampling import first_latent, guided, inpaint, sample
from mmjax.generators.schedules import row_levels
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, skipped_steps, steps_with_room
from mmjax.pipelines.output import PipelineOutput
from mmjax.pipelines.pictures import masks, pixels

PIPELINE = "StableDiffusionInpaintPipeline"
PARTS = latent_parts.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class Inpainting:
    """A model that fills masks, with its weights: `Inpainting(model.parts, model.schedule)` of a LatentDiffusion.

    Attributes:
        parts: text tower, UNet and autoencoder; the UNet reads latents, or beside them a mask and known latents.
        schedule: the sampler.
        strength, guidance_scale: of calls that do not say.
    """

    parts: LatentParts
    schedule: ScheduleConfig
    strength: float = 1.0
    guidance_scale: float = 7.5

    def __post_init__(self):
        channels = self.parts.autoencoder.latent_channels
        check_channels(self.parts, channels, 2 * channels + 1)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
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
            image: see `pixels`.
            mask_image: see `masks`; 1 (white) is drawn anew, 0 stays.
            strength: how much of the schedule is run, from 0 to 1; at 1 drawing starts from noise alone.
            latents: normal noise [B, h, w, C], channels last.

        The others are as in `LatentDiffusion`.

        Raises:
            ValueError: see `PromptReader.pair`, `pixels`, `masks`, `skipped_steps` and `Autoencoder.encode`.
        """
        parts, strength = self.parts, self.strength if strength is None else strength
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = parts.prompts.pair(*given, guidance_scale > 1)
        picture = 2 * pixels(image, rows) - 1
        mask = masks(mask_image, rows, picture.shape[1:3])
        start = skipped_steps(num_inference_steps, strength)
        steps = steps_with_room(self.schedule, num_inference_steps, start)
        levels = row_levels(self.schedule, num_inference_steps, start, steps.time.size)
        first, drawn, rng = jax.random.split(jax.random.key(seed), 3)
        noise = first_noise(latents, parts.latent_shape(picture), first)
        ids, picture, mask, noise = parts.rows(ids, picture, mask, noise)
        data = (steps, levels, ids, picture, mask, noise, np.float32(guidance_scale), strength == 1)
        return PipelineOutput(np.asarray(parts.compiled(draw)(parts.params, *data, drawn, rng)))


def draw(
    parts: LatentParts, params: dict[str, Any], steps: Steps, levels, ids, picture, mask, noise, scale, from_noise,
    drawn, rng,
) -> jax.Array:  # fmt: skip
    """Images, masks, noise and token ids -> images; what `Inpainting` compiles."""
    by = parts.autoencoder.downsampling
    whole, covered = jax.random.split(drawn)
    latent = parts.given(params, picture, whole)
    small = mask[:, ::by, ::by]
    noisy = levels[0, 0] * latent + levels[0, 1] * noise
    noisy = jnp.where(from_noise, first_latent(steps, noise), noisy)
    condition = parts.condition(params, ids, noise)
    if parts.unet.in_channels == latent.shape[-1]:
        known = lambda index: levels[index, 0] * latent + levels[index, 1] * noise
        denoise = guided(functools.partial(parts.denoise, params), scale, condition)
        return parts.decode(params, inpaint(denoise, steps, noisy, rng, known, small))
    beside = jnp.concatenate([small, parts.given(params, picture * (1 - mask), covered)], axis=-1)
    beside = jnp.concatenate([beside] * (ids.shape[0] // beside.shape[0]))

    def denoise(x: jax.Array, time: jax.Array, reads: tuple[Condition, jax.Array]) -> jax.Array:
        return parts.denoise(params, jnp.concatenate([x, reads[1]], axis=-1), time, reads[0])

    return parts.decode(params, sample(guided(denoise, scale, (condition, beside)), steps, noisy, rng))


def load(directory: Path, dtype: str, param_dtype: str) -> Inpainting:
    """Reads the directory of a diffusers StableDiffusionInpaintPipeline; see `load_latent_parts`."""
    return Inpainting(load_latent_parts(directory, dtype, param_dtype), load_schedule(directory / "scheduler"))
