"""Fixed sine and cosine positions on a plane (Vaswani et al., 2017; in two dimensions as He et al., 2022, "MAE")."""

import numpy as np

from mmjax.config import ConfigError


def sincos_2d(width: int, rows: int, columns: int) -> np.ndarray:
    """float32 [rows, columns, width]: the first half of the channels says the column, the second half the row.

    Each half holds the sines, then the cosines, of position / 10000^(i / (width / 4)).

    Raises:
        ConfigError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ConfigError(f"two-dimensional sine positions need a width that is a multiple of 4, got {width}")

    def line(length: int) -> np.ndarray:
        frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
        angles = np.arange(length)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    across = np.broadcast_to(line(columns)[None], (rows, columns, width // 2))
    down = np.broadcast_to(line(rows)[:, None], (rows, columns, width // 2))
    return np.concatenate([across, down], axis=-1).astype(np.float32)
