"""Fixed sine and cosine positions (Vaswani et al., 2017), on a plane as in He et al., 2022, "MAE"."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError


def sincos_1d(positions: jax.Array, width: int) -> jax.Array:
    """positions int [B, T] -> float32 [B, T, width]: the sines, then the cosines, of position times a frequency.

    The frequencies fall from 1 to 1 / 10000 in equal ratios, both ends included.

    Raises:
        ConfigError: `width` is odd or less than 4.
    """
    if width % 2 or width < 4:
        raise ConfigError(f"sine positions need an even width of at least 4, got {width}")
    frequencies = (10000.0 ** -(np.arange(width // 2) / (width // 2 - 1))).astype(np.float32)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sincos_2d(width: int, rows: int | np.ndarray, columns: int | np.ndarray) -> np.ndarray:
    """float32 [rows, columns, width]: the first half of the channels says the column, the second half the row.

    Each half is a `sincos_line`. Rows and columns are counts, or the positions themselves where these are not 0, 1, ...

    Raises:
        ConfigError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ConfigError(f"two-dimensional sine positions need a width that is a multiple of 4, got {width}")

    down, across = (np.arange(axis) if isinstance(axis, int) else axis for axis in (rows, columns))
    shape, half = (len(down), len(across), width // 2), width // 2
    lines = sincos_line(half, across)[None], sincos_line(half, down)[:, None]
    return np.concatenate([np.broadcast_to(line, shape) for line in lines], axis=-1)


def sincos_line(width: int, positions: np.ndarray) -> np.ndarray:
    """float32 [len(positions), width]: the sines, then the cosines, of position / 10000^(i / (width / 2))."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
