"""Media of several items a row, for encoders that take every item by itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmjax.data.contracts import Media


def encode_each(media: Media, encode: Callable[[jax.Array], jax.Array]) -> Media:
    """Raw items [B, I, *item shape] -> stage "encoded", [B, I * N, D], each item's features after the other's.

    Args:
        media: stage "raw"; `segment_ids` [B, I] where there are any.
        encode: items [B * I, *item shape] -> their features [B * I, N, D].
    """
    batch, items = media.values.shape[:2]
    x = encode(media.values.reshape(batch * items, *media.values.shape[2:]))
    segments = media.segment_ids
    if segments is not None:
        segments = jnp.repeat(jnp.asarray(segments), x.shape[1], axis=1)
    values = x.reshape(batch, items * x.shape[1], x.shape[2])
    return media.replace(values=values, segment_ids=segments, stage="encoded")
