"""The pooled projector against its formula in numpy."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.projectors.pooled import PooledProjector, PooledProjectorConfig

CONFIG = PooledProjectorConfig(in_width=7, width=5, global_heads=3, num_local=2, hidden=11, scale=0.1)


def random_params(config, seed=0):
    features = Media(jnp.zeros((1, 1 + config.num_local, config.in_width)), stage="encoded")
    params = nn.unbox(PooledProjector(config).init(jax.random.key(0), features)["params"])
    random = np.random.default_rng(seed)
    return params, jax.tree.map(lambda leaf: random.normal(1, 0.4, leaf.shape).astype(np.float32), params)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reference(params, config, features):
    """features [items, 1 + num_local, in_width] of one row."""
    rows = []
    for item in features:
        item = (item - params["mean"]) / params["std"]
        maps = [f"global_{i}" for i in range(config.global_heads)] + ["local"] * config.num_local
        sources = [0] * config.global_heads + list(range(1, 1 + config.num_local))
        for token, (name, source) in enumerate(zip(maps, sources, strict=True)):
            x = item[source]
            y = x @ params[name]["kernel"] + params[name]["bias"] + params["position"][token]
            y = y + gelu(x @ params["fc1"]["kernel"]) @ params["fc2"]["kernel"]
            rows.append(y * params["scale"])
    return np.stack(rows)


def test_equals_formula_with_several_items():
    _, params = random_params(CONFIG)
    values = np.random.default_rng(1).normal(size=(2, 3 * 4, 7)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2, 3, 4], [1, 2, 0, 0]], np.int32), 3, axis=1)
    media = Media(values, segment_ids=segments, stage="encoded")
    out = PooledProjector(CONFIG).apply({"params": params}, media)
    assert out.stage == "projected" and out.values.shape == (2, 4 * 5, 5)
    for row in range(2):
        expected = reference(params, CONFIG, values[row].reshape(4, 3, 7))
        np.testing.assert_allclose(out.values[row], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.segment_ids[1], [1] * 5 + [2] * 5 + [0] * 10)


def test_starts_as_linear_maps_times_scale():
    params, _ = random_params(CONFIG)
    assert not np.any(params["fc2"]["kernel"]) and not np.any(params["position"])
    x = np.random.default_rng(2).normal(size=(1, 3, 7)).astype(np.float32)
    out = PooledProjector(CONFIG).apply({"params": params}, Media(x, stage="encoded")).values
    expected = 0.1 * (x[0, 0] @ params["global_1"]["kernel"])
    np.testing.assert_allclose(out[0, 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dropout_drops_the_same_channels_in_all_features():
    sizes = dict(in_width=400, width=400, hidden=2)
    config = PooledProjectorConfig(**sizes, global_heads=1, num_local=3, dropout=0.3)
    params, _ = random_params(config)
    eye = {"kernel": np.eye(400, dtype=np.float32), "bias": np.zeros(400, np.float32)}
    params = {**params, "global_0": eye, "local": eye}
    media = Media(np.ones((2, 4, 400), np.float32), stage="encoded")
    rngs = {"dropout": jax.random.key(3)}
    out = np.asarray(PooledProjector(config).apply({"params": params}, media, True, rngs=rngs).values)
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1], out.shape))
    assert set(np.unique(np.round(out, 5))) == {0.0, np.float32(round(1 / 0.7, 5))}
    assert abs((out[:, 0] == 0).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 800)
    assert (out[0, 0] != out[1, 0]).any()


def test_counts_and_errors():
    assert CONFIG.num_tokens(3) == 5
    assert PooledProjectorConfig(in_width=2064, width=576).num_tokens(5) == 6
    assert from_dict(PooledProjectorConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="gives 49"):
        CONFIG.num_tokens(49)
    with pytest.raises(ConfigError, match="dropout"):
        PooledProjectorConfig(in_width=3, width=3, dropout=1.0)
    with pytest.raises(ValueError, match="4 features are no multiple of the 3"):
        PooledProjector(CONFIG).init(jax.random.key(0), Media(jnp.zeros((1, 4, 7)), stage="encoded"))
