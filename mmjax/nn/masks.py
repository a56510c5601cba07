"""Which token sees which, from what a TextStream says about its tokens."""

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
