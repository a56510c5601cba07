"""Which token sees which, from what a TextStream says about its tokens, and how far apart they stand."""

import jax
import jax.numpy as jnp

from mmjax.data.contracts import TextStream


def attention_mask(text: TextStream) -> jax.Array:
    """bool [B, T, T]: may query i (second axis) see key j (last axis)?

    Seen are earlier tokens and itself, within one segment and no padding. With `attend_group`, only those
    of group 0 or of the query's own group (several questions behind one shared image); with
    `bidirectional_group`, also later ones of the query's own non-zero group (a prefix-LM's prefix).
    """
    length = text.tokens.shape[1]
    index = jnp.arange(length)
    seen = jnp.broadcast_to(index[None, :] <= index[:, None], (text.tokens.shape[0], length, length))
    if text.bidirectional_group is not None:
        group = jnp.asarray(text.bidirectional_group)
        seen |= (group[:, :, None] == group[:, None, :]) & (group[:, None, :] > 0)
    if text.attend_group is not None:
        group = jnp.asarray(text.attend_group)
        seen &= (group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None])
    segment = jnp.asarray(text.segment_ids)
    return seen & (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)


def cross_mask(text: TextStream, query: TextStream) -> jax.Array:
    """bool [B, T, S]: may token i of `text` see token j of `query`? It may see all of its own segment but padding."""
    reader, read = jnp.asarray(text.segment_ids), jnp.asarray(query.segment_ids)
    return (reader[:, :, None] == read[:, None, :]) & (read[:, None, :] > 0)


def distances(mask: jax.Array) -> jax.Array:
    """int32 [B, T, S]: how many tokens before query i stands key j; of use only where the mask lets it be seen.

    Counted are tokens that are seen, so padding, other segments and other groups' tokens in between do not
    lengthen the way, wherever they lie and whatever slots a cache leaves empty. Later keys are at negative
    distances.

    Args:
        mask: bool [B, T, S]. With S = T, key j is the token of query j; else the keys are a cache that holds
            one text a row, as decoding has it.
    """
    if mask.shape[1] == mask.shape[2]:
        place = jnp.sum(jnp.tril(mask), axis=2, dtype=jnp.int32)
        return place[:, :, None] - place[:, None, :]
    place = jnp.cumsum(jnp.any(mask, axis=1), axis=1, dtype=jnp.int32)[:, None, :]
    return jnp.max(jnp.where(mask, place, 0), axis=2, keepdims=True) - place


def windowed(mask: jax.Array, size: int, pairs: bool = True) -> jax.Array:
    """bool [B, T, S]: `mask`, and only the `size` newest tokens up to and with itself (Beltagy et al., 2020).

    Args:
        mask: bool [B, T, S], as for `distances`.
        size: of the window.
        pairs: whether the window also holds for two tokens of which each sees the other (a prefix-LM's prefix).
    """
    near = mask & (distances(mask) < size)
    if pairs or mask.shape[1] != mask.shape[2]:
        return near
    return near | (mask & mask.swapaxes(1, 2))
