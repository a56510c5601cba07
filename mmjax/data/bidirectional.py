"""Which tokens see each other both ways: the prefix of a prefix-LM, or the tokens of each media item; in numpy.

Raffel et al., 2020 (prefix language models); Beyer et al., 2024 ("PaliGemma"). The numbers are those of
`TextStream.bidirectional_group`.
"""

import math
from collections.abc import Sequence

import numpy as np

from mmjax.data.positions import Run

KINDS = ("none", "prefix", "item")


def prefix_group(valid: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int32 [..., T]: 1 before the first target of a row, 0 from there on; without targets all is prefix.

    Args:
        valid: bool [..., T], what is no padding, which has 0.
        targets: bool [..., T], what the loss counts.
    """
    return (valid & (np.cumsum(targets, axis=-1) == 0)).astype(np.int32)


def item_group(length: int, runs: Sequence[Run]) -> np.ndarray:
    """int32 [T]: for the tokens of each item its number in the row, from 1; 0 for text and padding.

    Args:
        length: T.
        runs: the items of the row.
    """
    group = np.zeros(length, np.int32)
    for number, run in enumerate(runs, 1):
        group[run.start : run.start + math.prod(run.grid)] = number
    return group
