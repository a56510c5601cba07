"""Resizing of grids against torch's pooling and interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.config import ConfigError
from mmjax.nn.resize import resize, resize_matrix
from mmjax.nn.sincos import sincos_2d

THEIRS = {
    "average": lambda x, shape: F.adaptive_avg_pool2d(x, shape),
    "bilinear": lambda x, shape: F.interpolate(x, size=shape, mode="bilinear", align_corners=False),
    "bicubic": lambda x, shape: F.interpolate(x, size=shape, mode="bicubic", align_corners=False),
}


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize("source, target", [((7, 5), (3, 2)), ((4, 6), (9, 7)), ((1, 2), (3, 1)), ((5, 5), (5, 5))])
def test_equals_torch(method, source, target):
    x = np.random.default_rng(0).normal(size=(2, *source, 3)).astype(np.float32)
    theirs = THEIRS[method](torch.tensor(x).permute(0, 3, 1, 2), target).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(x, target, method), theirs, atol=2e-6)
    np.testing.assert_allclose(resize_matrix(source[0], target[0], method).sum(axis=1), 1, atol=1e-6)


def test_unknown_method():
    with pytest.raises(ConfigError, match="'nearest' is not one of"):
        resize_matrix(3, 2, "nearest")


def test_sines_one_by_one():
    table = sincos_2d(8, 3, 5)
    assert table.shape == (3, 5, 8)
    for row in range(3):
        for column in range(5):
            for half, position in enumerate((column, row)):
                for i in range(2):
                    angle = position / 10000 ** (i / 2)
                    np.testing.assert_allclose(table[row, column, 4 * half + i], np.sin(angle), atol=1e-6)
                    np.testing.assert_allclose(table[row, column, 4 * half + 2 + i], np.cos(angle), atol=1e-6)
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        sincos_2d(6, 2, 2)
