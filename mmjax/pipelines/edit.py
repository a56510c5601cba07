"""Images edited after an instruction: a UNet that reads the image beside the noisy latents (Brooks et al., 2023)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.contracts import Condition
from mmjax.generators.sampling import first_latent, guided_by_image, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, steps_with_room
from mmjax.pipelines.output import PipelineOutput
from mmjax.pipelines.pictures import pixels

PIPELINE = "StableDiffusionInstructPix2PixPipeline"
PARTS = latent_parts.PARTS


@dataclasses.dataclass(frozen=True, eq=False)
class InstructedEditing:
    """A model that edits images, with its weights.

    Attributes:
        parts: text tower, UNet and autoencoder; the UNet reads noisy latents with those of the image beside them.
        schedule: the sampler.
    """

    parts: LatentParts
    schedule: ScheduleConfig

    def __post_init__(self):
        check_channels(self.parts, 2 * self.parts.autoencoder.latent_channels)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
    ) -> PipelineOutput:
        """Draws `.images`, float32 [B, H, W, 3] from 0 to 1, of the size of `image`.

        Args:
            prompt: what to do to the image, such as "make it snow".
            image: see `pixels`.
            guidance_scale: how strongly the prompt counts.
            image_guidance_scale: how strongly the image counts. Where the former is at most 1, or this below 1, there
                is no guidance at all.
            latents: normal noise [B, h, w, C], channels last, to start from.

        The others are as in `LatentDiffusion`.

        Raises:
            ValueError: see `PromptReader.pair`, `pixels`, `make_steps` and `Autoencoder.encode`.
        """
        parts = self.parts
        guides = guidance_scale > 1 and image_guidance_scale >= 1
        ids, rows = parts.prompts.pair(prompt, prompt_ids, negative_prompt, negative_prompt_ids, guides)
        # Without either, with the image alone, with both.
        ids = np.concatenate([ids[:rows], ids]) if guides else ids
        picture = 2 * pixels(image, rows) - 1
        steps = steps_with_room(self.schedule, num_inference_steps)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = first_noise(latents, parts.latent_shape(picture), first)
        ids, picture, noise = parts.rows(ids, picture, noise)
        scales = np.asarray([guidance_scale, image_guidance_scale], np.float32)
        return PipelineOutput(np.asarray(parts.compiled(draw)(parts.params, steps, ids, picture, noise, scales, rng)))


def draw(parts: LatentParts, params: dict[str, Any], steps: Steps, ids, picture, noise, scales, rng) -> jax.Array:
    """Images, noise and token ids [3 B, window] or [B, window] -> images; what `InstructedEditing` compiles."""
    # Its mean, and not scaled: so it was trained.
    beside = parts.encode(params, picture, None)
    if ids.shape[0] > beside.shape[0]:
        beside = jnp.concatenate([jnp.zeros_like(beside), beside, beside])

    def denoise(x: jax.Array, time: jax.Array, reads: tuple[Condition, jax.Array]) -> jax.Array:
        return parts.denoise(params, jnp.concatenate([x, reads[1]], axis=-1), time, reads[0])

    reads = (parts.condition(params, ids, noise), beside)
    latent = sample(guided_by_image(denoise, *scales, reads), steps, first_latent(steps, noise), rng)
    return parts.decode(params, latent)


def load(directory: Path, dtype: str, param_dtype: str) -> InstructedEditing:
    """Reads the directory of a diffusers StableDiffusionInstructPix2PixPipeline; see `load_latent_parts`."""
    return InstructedEditing(load_latent_parts(directory, dtype, param_dtype), load_schedule(directory / "scheduler"))
