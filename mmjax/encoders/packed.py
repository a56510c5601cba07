"""Several images of any shapes in one row of patches: where each patch stands, and what it may see.

Dehghani et al., 2023, "Patch n' Pack: NaViT".
"""

import jax
import jax.numpy as jnp


def packed_places(
    segments: jax.Array, grid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The place of each patch in its image; patches of an image lie row by row in one run.

    Args:
        segments: int [B, N], the number of the item, from 1; 0 is padding.
        grid: int [B, I, 3], (time, rows, columns) of each item.

    Returns:
        int [B, N] each: row, column, rows of the image, columns of the image. Padding is at the first place
        of the first item.
    """
    item = jnp.maximum(segments - 1, 0)
    rows, columns = (
        jnp.maximum(jnp.take_along_axis(grid[..., axis], item, axis=1), 1) for axis in (1, 2)
    )
    first = jnp.argmax(segments[:, :, None] == segments[:, None, :], axis=-1)
    place = jnp.where(segments > 0, jnp.arange(segments.shape[1]) - first, 0)
    # An item of several frames repeats the places of a frame.
    place = place % (rows * columns)
    return place // columns, place % columns, rows, columns


def item_mask(segments: jax.Array) -> jax.Array:
    """int [B, N] -> bool [B, N, N]: patches see their own item; padding sees all items, and nothing sees it."""
    query, key = segments[:, :, None], segments[:, None, :]
    return (key > 0) & ((query == key) | (query == 0))
