"""Tokens that are least like others: by brute force, and what they then read."""

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.nn.attention import Attention
from mmjax.nn.norms import LayerNorm
from mmjax.projectors.resampler import ResamplerConfig
from mmjax.projectors.similarity import SimilarityConfig, least_similar

EACH = ResamplerConfig(in_width=10, width=12, grid=(2, 3), query_grid=(1, 2), num_heads=3)
CONFIG = SimilarityConfig(EACH, views=3, num_kept=4, num_heads=2)


def by_hand(x, count):
    """The places kept, one token and one pair after the other."""
    nearest = []
    for i, one in enumerate(x):
        cosines = [one @ other / np.linalg.norm(one) / np.linalg.norm(other) for j, other in enumerate(x) if j != i]
        nearest.append(max(cosines))
    return sorted(np.argsort(nearest, kind="stable")[:count].tolist())


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_least_similar_are_kept_in_order(count):
    x = np.random.default_rng(0).normal(size=(4, 7, 5)).astype(np.float32)
    x[0, 4] = 2.5 * x[0, 1]  # one direction twice: neither is kept as long as others are left
    kept = np.asarray(least_similar(x, count))
    assert kept.tolist() == [by_hand(row.astype(np.float64), count) for row in x]
    if count < 6:
        assert not {1, 4} & set(kept[0].tolist())


def test_kept_tokens_read_all(tools):
    values = np.random.default_rng(1).normal(size=(2, 2 * 3 * 6, 10)).astype(np.float32)
    segments = np.repeat([[1, 2], [1, 0]], 18, axis=1).astype(np.int32)
    params = tools.init(CONFIG, 18)
    out = tools.run(CONFIG, params, values, segment_ids=segments)
    assert out.values.shape == (2, 2 * 4, 12) and out.stage == "projected"
    assert np.asarray(out.segment_ids).tolist() == [[1] * 4 + [2] * 4, [1] * 4 + [0] * 4]
    made = tools.run(EACH, params["each"], values, segment_ids=segments).values.reshape(4, 6, 12)
    norm = lambda x: LayerNorm().apply({"params": params["norm"]}, x)
    attention = Attention(12, 2, 2, 6, True, True)
    read_by = jax.jit(lambda kept, x: attention.apply({"params": params["attn"]}, norm(kept), source=norm(x))[0])
    for item in range(3):  # the last one is padding
        kept = made[item, np.array(by_hand(np.asarray(made[item], np.float64), 4))][None]
        read = read_by(kept, made[item][None])
        np.testing.assert_allclose(out.values.reshape(4, 4, 12)[item], (kept + read)[0], atol=1e-5)
    assert CONFIG.num_tokens(18) == 4


def test_numbers_that_do_not_fit():
    with pytest.raises(ConfigError, match="num_kept must be 1 to the 6 tokens that 3 views make, got 7"):
        SimilarityConfig(EACH, 3, 7, 2)
    with pytest.raises(ConfigError, match="12 features make 4 tokens, not 6"):
        CONFIG.num_tokens(12)
