"""Text to images after the lines of a picture (Zhang et al., 2023, "ControlNet")."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.controlnet import ControlNet, ControlNetConfig
from mmjax.generators.sampling import first_latent, guided, sample
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.component_model import ControlModel, load_component
from mmjax.pipelines.latent_parts import LatentParts, check_channels, load_latent_parts
from mmjax.pipelines.latents import first_noise, steps_with_room
from mmjax.pipelines.output import PipelineOutput
from mmjax.pipelines.pictures import pixels

PIPELINE = "StableDiffusionControlNetPipeline"
PARTS = (*latent_parts.PARTS, "controlnet")


@dataclasses.dataclass(frozen=True, eq=False)
class ControlledDiffusion:
    """A text-to-image model that follows pictures: `ControlledDiffusion(model.parts, model.schedule, (control,))`.

    Attributes:
        parts: text tower, UNet and autoencoder.
        schedule: the sampler.
        controls: ControlNets as `mmjax.from_pretrained` gives them; what they say of the UNet's maps is added up.
    """

    parts: LatentParts
    schedule: ScheduleConfig
    controls: tuple[ControlModel, ...]

    def __post_init__(self):
        unet, autoencoder = self.parts.unet, self.parts.autoencoder
        check_channels(self.parts, autoencoder.latent_channels)
        for control in self.controls:
            c = control.config
            shape = (c.widths, c.blocks, c.in_channels, c.context_width)
            wanted = (unet.widths, unet.blocks, unet.in_channels, unet.context_width)
            if shape != wanted or c.downsampling != autoencoder.downsampling:
                raise ConfigError(
                    f"the ControlNet has (widths, blocks, in_channels, context_width) {shape} and reads pictures "
                    f"{c.downsampling} times as large as latents; the UNet has {wanted}, and images are "
                    f"{autoencoder.downsampling} times as large"
                )

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        seed: int = 0,
        latents: Any = None,
        prompt_ids: Any = None,
        negative_prompt_ids: Any = None,
        guess_mode: bool = False,
    ) -> PipelineOutput:
        """Draws `.images`, float32 [B, H, W, 3] from 0 to 1, of the size of `image`.

        Args:
            image: the picture to follow (edges, depth, a pose), see `pixels`; of several ControlNets a list with one
                such for each.
            controlnet_conditioning_scale: how strongly; one number, or one for each ControlNet.
            latents: normal noise [B, h, w, C], channels last, to start from.
            guess_mode: for a picture whose prompt says little or nothing: what is kept away from does not see it, and
                it is followed in what is large more than in details; a `guidance_scale` of 3 to 5 suits it.

        The others are as in `LatentDiffusion`.

        Raises:
            ValueError: see `PromptReader.pair`, `pixels` and `make_steps`; pictures of several sizes, or another number
                of pictures or scales than of ControlNets.
        """
        parts, count = self.parts, len(self.controls)
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids)
        ids, rows = parts.prompts.pair(*given, guidance_scale > 1)
        images = [image] if count == 1 else list(image)
        strengths = np.broadcast_to(np.asarray(controlnet_conditioning_scale, np.float32), (count,))
        if len(images) != count:
            raise ValueError(f"{len(images)} pictures for {count} ControlNets")
        pictures = tuple(pixels(one, rows, f"image {number}") for number, one in enumerate(images))
        if len({picture.shape for picture in pictures}) != 1:
            raise ValueError(f"pictures of several shapes: {[picture.shape for picture in pictures]}")
        steps = steps_with_room(self.schedule, num_inference_steps)
        first, rng = jax.random.split(jax.random.key(seed))
        noise = first_noise(latents, parts.latent_shape(pictures[0]), first)
        params = {**parts.params, "controls": tuple(control.params for control in self.controls)}
        program = parts.compiled(draw, tuple(control.config for control in self.controls))
        ids, noise, *pictures = parts.rows(ids, noise, *pictures)
        data = (ids, pictures, strengths, np.bool_(guess_mode), noise, np.float32(guidance_scale), rng)
        return PipelineOutput(np.asarray(program(params, steps, *data)))


def draw(
    parts: LatentParts, controls: tuple[ControlNetConfig, ...], params: dict[str, Any], steps: Steps, ids, pictures,
    strengths, guess, noise, scale, rng,
) -> jax.Array:  # fmt: skip
    """Noise, pictures and token ids -> images; what `ControlledDiffusion` compiles."""
    copies = ids.shape[0] // noise.shape[0]
    pictures = [jnp.concatenate([picture] * copies) for picture in pictures]
    # With guidance the first half of the rows is what is kept away from.
    blind = (guess & (jnp.arange(ids.shape[0]) < ids.shape[0] - noise.shape[0]))[:, None, None, None]
    nets = [ControlNet(config, jnp.dtype(parts.dtype)) for config in controls]

    def denoise(x: jax.Array, time: jax.Array, condition: Condition) -> jax.Array:
        found = [
            net.apply({"params": weights}, x, time, condition, picture, strength, guess)
            for net, weights, picture, strength in zip(nets, params["controls"], pictures, strengths, strict=True)
        ]
        residuals = tuple(jnp.where(blind, 0, sum(each)) for each in zip(*found, strict=True))
        return parts.denoise(params, x, time, dataclasses.replace(condition, extras={"residuals": residuals}))

    denoise = guided(denoise, scale, parts.condition(params, ids, noise))
    return parts.decode(params, sample(denoise, steps, first_latent(steps, noise), rng))


def load(directory: Path, dtype: str, param_dtype: str) -> ControlledDiffusion:
    """Reads the directory of a diffusers StableDiffusionControlNetPipeline, with one or several ControlNets.

    The first of them is in `controlnet`, the next in `controlnet_1`, and so on. See `load_latent_parts`.
    """
    places = [directory / "controlnet"]
    while (further := directory / f"controlnet_{len(places)}").is_dir():
        places.append(further)
    controls = tuple(load_component(place, dtype, param_dtype) for place in places)
    parts = load_latent_parts(directory, dtype, param_dtype)
    return ControlledDiffusion(parts, load_schedule(directory / "scheduler"), controls)
