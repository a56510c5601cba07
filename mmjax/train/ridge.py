"""A linear map from features to embeddings in closed form, to start a projector from.

Before any gradient step the regression from an image's feature to the embedding of its caption's word puts
the image near that word: training starts where the LLM can read, instead of spending its first hundred
steps on getting there.
"""

from typing import NamedTuple

import numpy as np


class Ridge(NamedTuple):
    """y = x @ kernel + bias; kernel float32 [in, D], bias float32 [D]."""

    kernel: np.ndarray
    bias: np.ndarray


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, penalty: float, unit: float = 1.0, stretch: bool = True
) -> Ridge:
    """Ridge regression whose predictions are stretched to spread as much as the targets do.

    Minimises sum |targets - bias - x A|^2 + penalty * n * var * |A|^2, where var is the mean variance of
    `features`, so that `penalty` means the same at any scale and count. Shrinkage pulls predictions to the
    mean; as tokens for an LLM they should be as far from it as words are, so A is multiplied by the ratio of
    both standard deviations.

    Args:
        features: [n, in].
        targets: [n, D].
        penalty: lambda, relative; must be above 0.
        unit: what the projector multiplies its output by; kernel and bias are divided by it.
        stretch: whether predictions are stretched; the best ones by mean square are not.

    Raises:
        ValueError: the counts differ, fewer than two rows, a penalty that is not above 0, a unit of 0.
    """
    if len(features) != len(targets) or len(features) < 2:
        raise ValueError(f"{len(features)} features for {len(targets)} targets; two or more pairs are needed")
    if not penalty > 0 or not unit:
        raise ValueError(f"penalty must be above 0 and unit not 0, got {penalty} and {unit}")
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    center, level = x.mean(0), y.mean(0)
    x, y = x - center, y - level
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram)
    kernel = np.linalg.solve(gram, x.T @ y)
    spread = (x @ kernel).std() if stretch else 0.0
    if spread > 0:
        kernel *= y.std() / spread
    bias = level - center @ kernel
    return Ridge((kernel / unit).astype(np.float32), (bias / unit).astype(np.float32))
