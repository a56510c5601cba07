"""Which items that are read inside the backbone each token of a sample sees.

Flamingo lets a token see the items of the media before it that came last; others let it see all before it, or all.
"""

from collections.abc import Sequence

import numpy as np

SEES = ("all", "before", "latest")


def seen_items(length: int, starts: Sequence[int | None], sees: str) -> np.ndarray:
    """bool [T, I]: which items each of `length` tokens sees.

    Args:
        length: T.
        starts: the place of each item in the text, ascending; items at the same place came together. None for an item
            that this text does not show (one branch of several), which none of its tokens sees.
        sees: one of SEES. "before": all whose place the token is at or behind; "latest": of those the last ones.
    """
    at = np.array([-1 if start is None else start for start in starts], np.int64)
    shown = np.broadcast_to(at >= 0, (length, len(at)))
    before = shown & (np.arange(length)[:, None] >= at)
    if sees == "latest" and len(at):
        return before & (at == np.where(before, at, -1).max(axis=1, keepdims=True))
    return shown.copy() if sees == "all" else before
