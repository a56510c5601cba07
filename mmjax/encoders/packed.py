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
    place, _, rows, columns = _in_frames(segments, grid)
    return place // columns, place % columns, rows, columns


def block_places(
    segments: jax.Array, grid: jax.Array, factor: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The place of each patch in its frame; patches of a frame lie square by square of `factor` x `factor`.

    Args:
        segments, grid: as in `packed_places`; `factor` divides rows and columns.
        factor: side of a square.

    Returns:
        int [B, N] each: row, column, rows of the frame, columns of the frame, where in the packed row it begins.
    """
    place, start, rows, columns = _in_frames(segments, grid)
    square, inside = place // factor**2, place % factor**2
    across = jnp.maximum(columns // factor, 1)
    row = square // across * factor + inside // factor
    return row, square % across * factor + inside % factor, rows, columns, start


def _in_frames(segments: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """int [B, N] each: number of the patch in its frame, where that begins, rows and columns; padding at the first."""
    item = jnp.maximum(segments - 1, 0)
    rows, columns = (
        jnp.maximum(jnp.take_along_axis(grid[..., axis], item, axis=1), 1) for axis in (1, 2)
    )
    first = jnp.argmax(segments[:, :, None] == segments[:, None, :], axis=-1)
    index = jnp.arange(segments.shape[1])
    # An item of several frames repeats the places of a frame.
    place = jnp.where(segments > 0, (index - first) % (rows * columns), 0)
    return place, jnp.where(segments > 0, index - place, 0), rows, columns


def item_mask(segments: jax.Array) -> jax.Array:
    """int [B, N] -> bool [B, N, N]: patches see their own item; padding sees all items, and nothing sees it."""
    query, key = segments[:, :, None], segments[:, None, :]
    return (key > 0) & ((query == key) | (query == 0))
