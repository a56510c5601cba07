"""One linear map of a signal's states."""

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.output_projectors import OUTPUT_PROJECTORS, LinearOutputConfig


@pytest.mark.parametrize("pooled", ["none", "mean", "first"])
def test_every_state_is_mapped(pooled):
    random = np.random.default_rng(0)
    config = LinearOutputConfig(7, 5, pooled)
    own = {"kernel": random.normal(size=(7, 5)).astype(np.float32), "bias": random.normal(size=5).astype(np.float32)}
    states = random.normal(size=(3, 4, 7)).astype(np.float32)
    out = jax.jit(OUTPUT_PROJECTORS[LinearOutputConfig](config).apply)({"params": {"out": own}}, states)
    wanted = states @ own["kernel"] + own["bias"]
    np.testing.assert_allclose(out.sequence, wanted, atol=1e-5)
    if pooled == "none":
        assert out.pooled is None
    else:
        np.testing.assert_allclose(out.pooled, wanted[:, 0] if pooled == "first" else wanted.mean(1), atol=1e-5)
    assert config.num_tokens(4) == 4


def test_another_pooling_is_not_known():
    with pytest.raises(ConfigError, match="pooled"):
        LinearOutputConfig(7, 5, "last")
