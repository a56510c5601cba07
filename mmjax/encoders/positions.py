"""Learned position grids read at other sizes, with the filters that published vision transformers use.

"bicubic": Keys' filter with a = -0.75, edges repeated (ViT, DINOv2, EVA). "bicubic_antialias": the filter with
a = -0.5, widened where the grid shrinks, cut off and renormalised at the edges (DINOv2 with registers).
"bilinear_antialias": the triangle filter in the same way (SigLIP 2). Pixel centres are at half integers.
"bilinear_corners": between the two nearest, corners on corners (Qwen3-VL). These give what
torch.nn.functional.interpolate gives (Keys, 1981, "Cubic convolution interpolation"). "floor": the one place whose
share of the axis the new place's own share begins in (Idefics2).
"""

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ("bicubic", "bicubic_antialias", "bilinear_antialias", "bilinear_corners", "floor")


def _cubic(x: jax.Array, a: float) -> jax.Array:
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def axis_weights(index: jax.Array, length: jax.Array | int, source: int, method: str) -> jax.Array:
    """How much each place of an axis of `source` counts at places `index` of the same axis at another length.

    Args:
        index: int [...], places on the new axis.
        length: int, or an array that broadcasts with `index`: the new length; it need not be known when tracing.
        source: length of the axis that is read.
        method: one of METHODS.

    Returns:
        float32 [..., source]; the weights of a place add up to 1.
    """
    if method == "floor":
        # In float32 and with the reciprocal, as checkpoints were trained: whole numbers differ on long axes.
        share = jnp.minimum(jnp.asarray(index, jnp.float32) * (1 / jnp.asarray(length, jnp.float32)), 1 - 1e-6)
        bounds = (np.arange(1, source) / source).astype(np.float32)
        return jax.nn.one_hot(jnp.sum(share[..., None] >= bounds, axis=-1), source)
    if method == "bilinear_corners":
        center = jnp.asarray(index, jnp.float32) * (source - 1) / jnp.maximum(jnp.asarray(length) - 1, 1)
        return jnp.maximum(1 - jnp.abs(jnp.arange(source) - center[..., None]), 0)
    scale = source / jnp.asarray(length, jnp.float32)
    center = (scale * (jnp.asarray(index, jnp.float32) + 0.5))[..., None]
    places = jnp.arange(source)
    if method == "bicubic":
        first = jnp.floor(center - 0.5)
        part = center - 0.5 - first
        weights = jnp.zeros((*center.shape[:-1], source))
        for tap in range(-1, 3):
            at = jnp.clip(first + tap, 0, source - 1)
            weights += _cubic(part - tap, -0.75) * (places == at)
        return weights
    stretch = jnp.broadcast_to(jnp.maximum(scale, 1.0), center.shape[:-1])[..., None]
    x = (places + 0.5 - center) / stretch
    weights = _cubic(x, -0.5) if method == "bicubic_antialias" else jnp.maximum(1 - jnp.abs(x), 0)
    return weights / weights.sum(-1, keepdims=True)


def resize_grid(table: jax.Array, height: int, width: int, method: str) -> jax.Array:
    """A square grid [S * S, D], row by row, read at [height * width, D], in float32."""
    side = round(table.shape[0] ** 0.5)
    rows = axis_weights(jnp.arange(height), height, side, method)
    columns = axis_weights(jnp.arange(width), width, side, method)
    table = table.astype(jnp.float32).reshape(side, side, -1)
    table = jnp.einsum("rg,gkd->rkd", rows, table, precision="highest")
    table = jnp.einsum("ck,rkd->rcd", columns, table, precision="highest")
    return table.reshape(height * width, -1)


def read_grid(
    table: jax.Array, rows: jax.Array, columns: jax.Array, heights: jax.Array, widths: jax.Array, method: str
) -> jax.Array:
    """A square grid read at single places of grids of any size: for images of many shapes in one array.

    Args:
        table: [S * S, D], row by row.
        rows, columns: int [B, N], the place of each token in its image.
        heights, widths: int [B, N], the size of that image in tokens.
        method: one of METHODS.

    Returns:
        float32 [B, N, D].
    """
    side = round(table.shape[0] ** 0.5)
    weights = axis_weights(rows, heights, side, method)[..., :, None]
    weights = weights * axis_weights(columns, widths, side, method)[..., None, :]
    weights = weights.reshape(*rows.shape, side * side)
    return jnp.matmul(weights, table.astype(jnp.float32), precision="highest")
