"""The bidirectional text tower: what its options cannot say, and texts that are too long."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.encoders.dual import Tower

CONFIG = BidirectionalTextConfig(11, 6, 2, 2, 3, 8, relative_buckets=4, relative_max_distance=9)
LEARNED = dataclasses.replace(CONFIG, position="learned", table_rows=7, pad_id=2, norm="layer", post_norm=True)


def test_bad_options_are_named():
    for options, message in (
        ({"position": "sines"}, "bidirectional_text.position"),
        ({"relative_buckets": 3}, "relative_buckets must be at least 4 and at most relative_max_distance 9, got 3"),
        ({"projection_dim": 4}, "projection_dim needs pooled"),
        ({"position": "learned", "table_rows": 3, "pad_id": 2}, "pad_id 2 leaves no position of 3 rows"),
        ({"projection_activation": "swish"}, "projection_activation"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(CONFIG, **options)
    assert LEARNED.max_positions == 4 and CONFIG.max_positions is None
    tokens = jnp.zeros((1, 5), jnp.int32)
    with pytest.raises(ValueError, match="text of 5 tokens, but the encoder has 4 positions"):
        jax.eval_shape(Tower(LEARNED).module.init, jax.random.key(0), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, position="relative_each"), LEARNED])
def test_axes_and_dtypes(config):
    tower = Tower(config, "bfloat16", "bfloat16")
    params = tower.init(jax.random.key(0))
    axes = tower.param_axes()
    is_axes = lambda leaf: isinstance(leaf, tuple)
    jax.tree.map(lambda names, leaf: np.testing.assert_equal(len(names), leaf.ndim), axes, params, is_leaf=is_axes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert tower(params, jnp.ones((2, 4), jnp.int32))["last_hidden_state"].dtype == jnp.bfloat16
