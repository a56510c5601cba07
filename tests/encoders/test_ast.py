"""What transformers' class does not say of the spectrogram transformer: where patches lie, counts, items, errors."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.ast import AST, ASTConfig, overlapping_patches
from mmjax.encoders.dual import Tower

CONFIG = ASTConfig(17, 9, 12, 2, 3, 10, patch_size=4, frequency_stride=3, time_stride=5, feature_strategy="patches")


def test_patches_and_counts():
    values = np.random.default_rng(0).normal(size=(2, 17, 9)).astype(np.float32)
    patches = np.asarray(overlapping_patches(values, CONFIG))
    assert CONFIG.grid_size == (2, 3) and patches.shape == (2, 6, 4, 4, 1)
    for row in range(2):
        for column in range(3):
            cut = values[:, 5 * column : 5 * column + 4, 3 * row : 3 * row + 4]
            np.testing.assert_array_equal(patches[:, 3 * row + column, :, :, 0], cut.swapaxes(1, 2))
    assert CONFIG.num_tokens() == 6 and dataclasses.replace(CONFIG, feature_strategy="full").num_tokens() == 8


@pytest.mark.slow
def test_items_in_rows():
    params = jax.jit(Tower(CONFIG).init)(jax.random.key(0))
    values = np.random.default_rng(0).normal(size=(2, 2, 17, 9)).astype(np.float32)
    out = jax.jit(AST(CONFIG).apply)({"params": params}, Media(values, np.array([[1, 2], [1, 0]], np.int32)))
    assert out.values.shape == (2, 12, 12) and out.segment_ids[1].tolist() == [1] * 6 + [0] * 6
    alone = AST(CONFIG).apply({"params": params}, values[1], method="run")
    np.testing.assert_allclose(out.values[1].reshape(2, 6, 12), alone["last_hidden_state"][:, 2:], atol=1e-6)
    with pytest.raises(ValueError, match="16 frames x 9 bands, but the encoder takes 17 x 9"):
        AST(CONFIG).apply({"params": params}, np.zeros((1, 16, 9)), method="run")


def test_bad_options_are_named():
    for change, words in (
        ({"activation": "gelo"}, "ast.activation"),
        ({"feature_strategy": "class"}, "ast.feature_strategy"),
        ({"num_heads": 5}, "width 12 is not a multiple of num_heads 5"),
        ({"time_stride": 0}, "time_stride must be at least 1, got 0"),
        ({"patch_size": 10}, "num_mels 9 must be at least patch_size 10"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
