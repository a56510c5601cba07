"""Rows of media taken apart into items, for projectors that turn each item into tokens of its own."""

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Media


def check_features(kind: str, expected: int | None, num_features: int) -> None:
    """Raises ConfigError, with both numbers, where an encoder gives other counts than a config expects."""
    if expected is not None and num_features != expected:
        raise ConfigError(
            f"{kind} projector: its num_features is {expected}, but the encoder gives {num_features} features an item"
        )


def split_items(
    media: Media, num_features: int | None, initializing: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """Features [B, N, C] of whole rows -> features of single items, and which of them are no padding.

    Args:
        media: stage "encoded".
        num_features: features of an item where all items have as many and stand one after the other. None:
            items differ, `segment_ids` says whose a feature is and `grid` (or `original_size`) how many items
            a row can hold; each item then gets a view of the whole row, at I times the memory.
        initializing: whether only parameters are made, of features that say nothing about items.

    Returns:
        Features [B * I, N of an item, C]; bool [B * I, N of an item], or None where nothing is padding.

    Raises:
        ValueError: no whole number of items, or nothing says how many there are.
    """
    batch, length, width = media.values.shape
    segments = None if media.segment_ids is None else jnp.asarray(media.segment_ids)
    if num_features is not None:
        if length % num_features:
            raise ValueError(f"{length} features are no whole number of items of {num_features} features each")
        values = media.values.reshape(-1, num_features, width)
        return values, None if segments is None else (segments > 0).reshape(-1, num_features)
    if initializing:
        return media.values, None
    sized = media.grid if media.grid is not None else media.original_size
    if sized is None or segments is None:
        raise ValueError(
            f"nothing says how many items {length} features are: give the projector's config num_features, or "
            "Media its segment_ids and grid"
        )
    items = sized.shape[1]
    seen = segments[:, None, :] == jnp.arange(1, items + 1)[:, None]
    values = jnp.broadcast_to(media.values[:, None], (batch, items, length, width))
    return values.reshape(-1, length, width), seen.reshape(-1, length)


def join_items(media: Media, values: jax.Array, seen: jax.Array | None) -> Media:
    """Tokens [B * I, Q, D] of single items -> stage "projected", [B, I * Q, D].

    Args:
        media: what `split_items` took apart.
        values: tokens of each item.
        seen: what `split_items` said; an item without a single feature becomes padding.
    """
    batch, (rows, tokens, width) = media.values.shape[0], values.shape
    items, segments = rows // batch, None
    if seen is not None:
        segments = jnp.where(seen.any(axis=1).reshape(batch, items), jnp.arange(1, items + 1), 0)
        segments = jnp.repeat(segments, tokens, axis=1)
    return media.replace(
        values=values.reshape(batch, items * tokens, width), segment_ids=segments, stage="projected"
    )
