"""Running a schedule's table: from noise to a latent, as one compiled program.

The number of steps, the schedule and its numbers are data (`Steps`), so that a program compiled once for a capacity
runs them all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.generators.schedules.steps import Steps, read

# A denoiser: (x as it is to be seen, time, float32 scalar) -> its prediction, of the shape of x.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def first_latent(steps: Steps, noise: jax.Array) -> jax.Array:
    """Normal noise, scaled to what the first row expects."""
    return noise * jnp.asarray(steps.start, noise.dtype)


def sample(denoise: Denoise, steps: Steps, latent: jax.Array, rng: jax.Array) -> jax.Array:
    """Runs `steps.count` rows.

    Args:
        denoise: the denoiser with everything that it is conditioned on.
        steps: the table.
        latent: [B, ...], see `first_latent`, or a noised image to go on from.
        rng: for samplers that add noise; row i draws from `fold_in(rng, i)`. Or [B] of them, one for each latent.

    Returns:
        The latent behind the last row, in the dtype of `latent`.
    """
    return _run(denoise, steps, latent, rng, lambda index, latent: latent)


def inpaint(
    denoise: Denoise,
    steps: Steps,
    latent: jax.Array,
    rng: jax.Array,
    known: Callable[[jax.Array], jax.Array],
    mask: jax.Array,
) -> jax.Array:
    """`sample`, where parts of the latent are known.

    Args:
        known: index of a row, counted from 1, -> the known latent [B, ...] with the noise that stands before that row.
        mask: float [B, ...] or broadcastable, 1 where the latent is to be made, 0 where it is known.
    """
    return _run(denoise, steps, latent, rng, lambda index, x: mask * x + (1 - mask) * known(index))


def guided(denoise: Callable[..., jax.Array], scale: jax.Array | float, conditions: Any) -> Denoise:
    """Classifier-free guidance (Ho & Salimans, 2022): one denoiser of two conditions.

    Args:
        denoise: (x [2 B, ...], time, conditions) -> prediction [2 B, ...].
        scale: how far to go from the prediction without a condition to that with it; 1 is the latter.
        conditions: pytree with leaves [2 B, ...], those without the condition first; or [B, ...], the condition
            alone, and then `scale` counts for nothing.
    """

    def apply(x: jax.Array, time: jax.Array) -> jax.Array:
        if jax.tree.leaves(conditions)[0].shape[0] == x.shape[0]:
            return denoise(x, time, conditions)
        without, with_it = jnp.split(denoise(jnp.concatenate([x, x]), time, conditions), 2)
        return without + scale * (with_it - without)

    return apply


def _normal(rng: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if not rng.ndim:
        return jax.random.normal(jax.random.fold_in(rng, index), shape)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape[1:]))(rng)


def guided_by_image(
    denoise: Callable[..., jax.Array], scale: jax.Array | float, image_scale: jax.Array | float, conditions: Any
) -> Denoise:
    """Guidance by a text and by an image, each with a weight of its own (Brooks et al., 2023, "InstructPix2Pix").

    Args:
        denoise: (x [3 B, ...], time, conditions) -> prediction [3 B, ...].
        scale: how far to go from the prediction with the image alone to that with both.
        image_scale: how far to go from the prediction without either to that with the image.
        conditions: pytree with leaves [3 B, ...]: without either first, then with the image, then with both; or
            [B, ...], both, and then the scales count for nothing.
    """

    def apply(x: jax.Array, time: jax.Array) -> jax.Array:
        if jax.tree.leaves(conditions)[0].shape[0] == x.shape[0]:
            return denoise(x, time, conditions)
        without, image, both = jnp.split(denoise(jnp.concatenate([x] * 3), time, conditions), 3)
        return without + scale * (both - image) + image_scale * (image - without)

    return apply


def _run(denoise, steps: Steps, latent: jax.Array, rng: jax.Array, mend) -> jax.Array:
    steps = jax.tree.map(jnp.asarray, steps)
    dtype = latent.dtype

    def body(index, held):
        x, anchor, (y1, y2, y3) = held
        row = read(steps, index)
        prediction = denoise((x * row.scale).astype(dtype), row.time).astype(jnp.float32)
        y = jnp.clip(row.keep[0] * x + row.keep[1] * prediction, -row.clip, row.clip)
        parts = (x, anchor, y, prediction, y1, y2, y3)

        def mixed(weights):
            # What has no weight may be infinite where a schedule starts from noise alone.
            return sum(jnp.where(weight != 0, weight * part, 0.0) for weight, part in zip(weights, parts, strict=True))

        new, anchor = mixed(row.latent), mixed(row.anchor)
        fresh = lambda: row.noise * _normal(rng, index, x.shape)
        new = new + jax.lax.cond(row.noise != 0, fresh, lambda: jnp.zeros(x.shape))
        history = jax.tree.map(lambda pushed, old: jnp.where(row.push, pushed, old), (y, y1, y2), (y1, y2, y3))
        return mend(index + 1, new), anchor, history

    x = latent.astype(jnp.float32)
    zero = jnp.zeros_like(x)
    return jax.lax.fori_loop(0, steps.count, body, (x, x, (zero, zero, zero)))[0].astype(dtype)
