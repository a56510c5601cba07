"""Which items that are read inside the backbone each token of a sample sees.

Flamingo lets a token see the items of the media before it that came last; others let it see all before it, or all.
"""

from collections.abc import Sequence

import numpy as np

SEES = ("all", "before", "latest")


def seen_items(length: int, starts: Sequence[int], sees: str) -> np.ndarray:
    """bool [T, I]: which items each of `length` tokens sees.

    Args:
        length: T.
        starts: the place of each item in the text, ascending; items at the same place came together.
        sees: one of SEES. "before": all whose place the token is at or behind; "latest": of those the last ones.
    """
    at = np.asarray(starts, np.int64)
    if sees == "all":
        return np.ones((length, len(at)), bool)
    before = np.arange(length)[:, None] >= at
    if sees == "before" or not len(at):
        return before
    last = np.where(before, at, -1).max(axis=1, keepdims=True)
    return before & (at == last)
