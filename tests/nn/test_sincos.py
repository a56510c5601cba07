"""Sine positions against transformers' table and against the line written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextSinusoidalPositionalEmbedding

from mmjax.config import ConfigError
from mmjax.nn.sincos import sincos_1d, sincos_2d


@pytest.mark.parametrize("width", [4, 6, 38])
def test_on_a_line(width):
    positions = np.array([[0, 1, 2, 30], [7, 3, 3, 59]], np.int32)
    theirs = Kosmos2TextSinusoidalPositionalEmbedding.get_embedding(60, width).numpy()
    np.testing.assert_allclose(sincos_1d(jnp.asarray(positions), width), theirs[positions], atol=1e-5)


def test_on_a_plane():
    table = sincos_2d(8, 3, 5)
    for row in range(3):
        for column in range(5):
            angles = [place / 10000 ** (i / 2) for place in (column, row) for i in range(2)]
            expected = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
            np.testing.assert_allclose(table[row, column], expected, atol=1e-6)


def test_widths():
    for width in (2, 5):
        with pytest.raises(ConfigError, match=f"got {width}"):
            sincos_1d(jnp.zeros((1, 1), jnp.int32), width)
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        sincos_2d(6, 2, 2)
