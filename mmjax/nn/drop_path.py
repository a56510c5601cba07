"""Stochastic depth (Huang et al., 2016): in training, what a block adds is left out for some samples of a batch."""

import jax
import jax.numpy as jnp
import numpy as np


def drop_rates(rate: float, num_layers: int) -> np.ndarray:
    """float32 [L]: 0 in the first layer, `rate` in the last, in equal steps."""
    return np.linspace(0, rate, num_layers, dtype=np.float32)


def drop_path(x: jax.Array, rate: jax.Array | float, rng: jax.Array) -> jax.Array:
    """Leaves out whole samples of x [B, ...] with probability `rate`; the others are divided by 1 - `rate`.

    `rate` must be below 1.
    """
    kept = jax.random.bernoulli(rng, 1 - rate, (x.shape[0], *(1,) * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
