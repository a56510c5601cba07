"""What the token_type_ids of transformers' processors say: which tokens see each other both ways.

The same name means the prefix for PaliGemma, whose type is 0, and the tokens of images for Gemma 3, whose type is 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.bidirectional import item_group, prefix_group
from mmjax.data.positions import Run
from mmjax.interop.huggingface.input_items import integers
from mmjax.model import MultimodalLMConfig


def bidirectional_groups(
    config: MultimodalLMConfig,
    valid: np.ndarray,
    runs: Sequence[Sequence[Run]],
    types: Any = None,
    targets: np.ndarray | None = None,
) -> np.ndarray | None:
    """Which tokens see each other both ways, int32 [B, T] as in `TextStream`; None where none do.

    Args:
        config: says of what kind they are.
        valid: bool [B, T], what is no padding.
        runs: for each row its items.
        types: token_type_ids int [B, T] as the processor gives them: where the prefix counts, 0 for prefix and 1 for
            what is written; where the items count, 1 for those of an item. Without them, the prefix ends before the
            first target, and the items are those of the placeholders, two that touch being two.
        targets: bool [B, T], what the loss counts.

    Raises:
        ValueError: types that are not [B, T], or of a model that has no such tokens.
    """
    if types is not None:
        types = integers("token_type_ids", types)
        if config.bidirectional == "none" or types.shape != valid.shape:
            raise ValueError(
                f"token_type_ids are {types.shape}: "
                + ("this model reads none" if config.bidirectional == "none" else f"input_ids is {valid.shape}")
            )
    if config.bidirectional == "none":
        return None
    if config.bidirectional == "prefix":
        if types is not None:
            return (valid & (types == 0)).astype(np.int32)
        return prefix_group(valid, np.zeros_like(valid) if targets is None else targets)
    if types is None:
        return np.stack([item_group(len(row), items) for row, items in zip(valid, runs, strict=True)])
    inside = valid & (types == 1)
    begins = inside & ~np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    return np.where(inside, np.cumsum(begins, axis=1), 0).astype(np.int32)
