"""Features of regions of an image: read on a grid laid into a box, or averaged under a mask.

R regions of an image; features are maps [B, H, W, C].
"""

import jax
import jax.numpy as jnp

from mmjax.nn.resize import resize


def roi_align(
    features: jax.Array,
    boxes: jax.Array,
    out_size: tuple[int, int],
    scale: float | tuple[float, float] = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """RoIAlign (He et al., 2017, "Mask R-CNN"): each cell of a grid in the box is the mean of bilinear samples.

    Samples of a box are products of places on two axes, so the whole is two matrix products a box; nothing is
    gathered. Samples more than one cell outside the map are 0, others outside are those at its edge.

    Args:
        features: [B, H, W, C].
        boxes: float [B, R, 4], x1, y1, x2, y2.
        out_size: rows and columns of the grid, (P, Q).
        scale: cells of the map a unit of the boxes; two numbers for (down, right).
        sampling_ratio: samples of a cell along each axis.
        aligned: whether centres of cells are at half integers, as they should be. False is the older reading, a
            half cell off, where boxes also have at least the size of one cell.

    Returns:
        [B, R, P, Q, C] in the features' dtype, summed in float32.

    Raises:
        ValueError: shapes that do not fit, or no samples.
    """
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or boxes.shape[0] != features.shape[0]:
        raise ValueError(f"boxes are {boxes.shape}, wanted [B, R, 4] with features {features.shape}")
    if sampling_ratio < 1 or min(out_size) < 1:
        raise ValueError(f"sampling_ratio {sampling_ratio} and out_size {out_size} must be at least 1")
    down, right = (scale, scale) if isinstance(scale, int | float) else scale
    boxes = boxes.astype(jnp.float32)
    x1, y1, x2, y2 = (boxes[..., side] * unit for side, unit in enumerate((right, down, right, down)))
    rows = _axis(y1, y2, out_size[0], features.shape[1], sampling_ratio, aligned)
    columns = _axis(x1, x2, out_size[1], features.shape[2], sampling_ratio, aligned)
    x = jnp.einsum("brph,bhwc->brpwc", rows, features.astype(jnp.float32), precision="highest")
    return jnp.einsum("brqw,brpwc->brpqc", columns, x, precision="highest").astype(features.dtype)


def _axis(low: jax.Array, high: jax.Array, count: int, length: int, samples: int, aligned: bool) -> jax.Array:
    """How much each of `length` places counts in each of `count` cells from `low` to `high` [B, R]: [B, R, P, H]."""
    size = high - low
    if aligned:
        low = low - 0.5
    else:
        size = jnp.maximum(size, 1.0)
    share = (jnp.arange(count * samples) + 0.5) / (count * samples)
    at = low[..., None] + size[..., None] * share
    seen = (at >= -1) & (at <= length)
    at = jnp.clip(at, 0, length - 1)[..., None]
    weights = jnp.maximum(1 - jnp.abs(at - jnp.arange(length)), 0) * seen[..., None]
    return weights.reshape(*low.shape, count, samples, length).mean(axis=-2)


def mask_pool(features: jax.Array, masks: jax.Array) -> jax.Array:
    """The mean of the features under each mask (Yuan et al., 2024, "Osprey").

    Args:
        features: [B, H, W, C].
        masks: [B, R, h, w], bool or not negative. Masks of another size than the map are resized bilinearly, and
            count wherever anything of them is left.

    Returns:
        [B, R, C] in the features' dtype, summed in float32; zeros under an empty mask, which one that is thinner
        than a cell can become.

    Raises:
        ValueError: shapes that do not fit.
    """
    if masks.ndim != 4 or masks.shape[0] != features.shape[0]:
        raise ValueError(f"masks are {masks.shape}, wanted [B, R, h, w] with features {features.shape}")
    kept = resize(masks.astype(jnp.float32)[..., None], features.shape[1:3], "bilinear")[..., 0] > 0
    total = jnp.einsum("brhw,bhwc->brc", kept.astype(jnp.float32), features.astype(jnp.float32), precision="highest")
    return (total / jnp.maximum(kept.sum((2, 3)), 1)[..., None]).astype(features.dtype)
