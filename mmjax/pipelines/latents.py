"""Shapes of latents, the noise that sampling starts from, and tables of steps that one compiled program runs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.generators.schedules import make_steps
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.schedules.steps import Steps


def latent_sides(sides: Sequence[int | None], trained: int, downsampling: int) -> tuple[int, ...]:
    """Sides in pixels (height, width) -> in places of the latent.

    Args:
        sides: None stands for the side of training.
        trained: places of that side.
        downsampling: pixels along a side for one place.

    Raises:
        ValueError: sides that are no multiple of `downsampling`.
    """
    sides = [trained * downsampling if side is None else side for side in sides]
    if any(side < 1 or side % downsampling for side in sides):
        raise ValueError(f"images of {' x '.join(map(str, sides))} pixels; sides must be multiples of {downsampling}")
    return tuple(side // downsampling for side in sides)


def first_noise(latents: Any, shape: tuple[int, ...], rng: jax.Array) -> jax.Array:
    """Normal noise float32 of `shape`: `latents` if they are given.

    Raises:
        ValueError: latents of another shape.
    """
    noise = jax.random.normal(rng, shape) if latents is None else jnp.asarray(latents, jnp.float32)
    if noise.shape != tuple(shape):
        raise ValueError(f"latents are {tuple(noise.shape)}; wanted {tuple(shape)}")
    return noise


def steps_with_room(schedule: ScheduleConfig, num_inference_steps: int, start: int = 0) -> Steps:
    """A sampler's table, as large for any number of steps, so that one program runs them all.

    No sampler evaluates the denoiser more than twice a step. See `make_steps` for `start` and errors.
    """
    return make_steps(schedule, num_inference_steps, start, capacity=2 * schedule.noise.train_steps)


def skipped_steps(num_inference_steps: int, strength: float) -> int:
    """How many steps are left out at the noisy end where an image is changed by `strength`, 0 to 1.

    Raises:
        ValueError: a strength outside, or one that leaves no step.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; wanted 0 to 1")
    left = int(num_inference_steps * strength)
    if num_inference_steps >= 1 and left < 1:
        raise ValueError(f"strength {strength} leaves none of {num_inference_steps} steps")
    return num_inference_steps - left
