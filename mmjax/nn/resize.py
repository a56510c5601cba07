"""Grids brought to another size, one matrix product an axis; numbers as torch's pooling and interpolation give them.

The matrices are computed in numpy at trace time, so that a target that is no divisor of the source needs no
special case.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import check_choice

METHODS = ("average", "bilinear", "bicubic")
# The free parameter of cubic convolution (Keys, 1981); torch and OpenCV use this one, others -0.5.
_CUBIC = -0.75


def resize_matrix(source: int, target: int, method: str) -> np.ndarray:
    """float32 [target, source]: the weight of every source position in every target position.

    Args:
        source, target: positions along one axis.
        method: "average" (adaptive average pooling: each target is the mean of the source positions that it
            touches), "bilinear" or "bicubic" (between pixel centres, without anti-aliasing).

    Raises:
        ConfigError: another method.
    """
    check_choice("method", method, METHODS)
    matrix = np.zeros((target, source))
    for row in range(target):
        if method == "average":
            first, last = row * source // target, -(-(row + 1) * source // target)
            matrix[row, first:last] = 1 / (last - first)
            continue
        centre = (row + 0.5) * source / target - 0.5
        if method == "bilinear":
            centre = max(centre, 0.0)
        first = int(np.floor(centre))
        for at in range(first - 1, first + 3):
            # Positions beyond the edge count as the one at the edge.
            matrix[row, min(max(at, 0), source - 1)] += _kernel(abs(centre - at), method)
    return matrix.astype(np.float32)


def _kernel(distance: float, method: str) -> float:
    if method == "bilinear":
        return max(1 - distance, 0.0)
    if distance <= 1:
        return ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    if distance < 2:
        return _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return 0.0


def resize(x: jax.Array, shape: tuple[int, int], method: str) -> jax.Array:
    """x [..., h, w, C] -> [..., *shape, C] in x's dtype, summed in float32; see `resize_matrix`."""
    if x.shape[-3:-1] == tuple(shape):
        return x
    rows = resize_matrix(x.shape[-3], shape[0], method)
    columns = resize_matrix(x.shape[-2], shape[1], method)
    return jnp.einsum("Hh,...hwc,Ww->...HWc", rows, x.astype(jnp.float32), columns, precision="highest").astype(x.dtype)


def risen(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *shape, C], every place taken from the nearest above it; usually twice as large."""
    rows, columns = ((jnp.arange(new) * old) // new for new, old in zip(shape, x.shape[1:3], strict=True))
    return x[:, rows][:, :, columns]
