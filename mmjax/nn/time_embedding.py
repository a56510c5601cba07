"""Numbers, such as the time of diffusion, as waves of many lengths (Vaswani et al., 2017; Ho et al., 2020)."""

import math

import jax
import jax.numpy as jnp


def frequencies(times: jax.Array, width: int, sine_first: bool = False, shift: float = 0.0) -> jax.Array:
    """float32 [..., width]: sines and cosines of times at `width` / 2 frequencies from 1 down to 1 / 10000.

    With `shift` the frequencies are spaced by `width` / 2 - shift of them, not `width` / 2.
    """
    half = width // 2
    speed = jnp.exp(-math.log(10000.0) / (half - shift) * jnp.arange(half, dtype=jnp.float32))
    angle = jnp.asarray(times, jnp.float32)[..., None] * speed
    parts = (jnp.sin(angle), jnp.cos(angle)) if sine_first else (jnp.cos(angle), jnp.sin(angle))
    return jnp.concatenate(parts, axis=-1)
