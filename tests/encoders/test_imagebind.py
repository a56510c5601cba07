"""One ImageBind tower as an encoder: what it gives, what is left out in training, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.imagebind import ImageBindTower, ImageBindTowerConfig

CONFIG = ImageBindTowerConfig("audio", (15, 11), (4, 4), 10, 2, 2, 16, 7, stride=(3, 3), clips=2, logit_scale=20.0)


@functools.cache
def fresh(config):
    return jax.jit(Tower(config).init)(jax.random.key(0))


def params_of(config):
    return dict(fresh(config))


def items(config, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, *config.item_shape)).astype(np.float32)


@pytest.mark.slow
def test_features():
    params, values = params_of(CONFIG), items(CONFIG, 2, 3)
    out = jax.jit(Tower(CONFIG).__call__)(params, values.reshape(6, 2, 15, 11))
    assert CONFIG.grid_size == (3, 4) and out["last_hidden_state"].shape == (6, 2 * 13, 10)
    whole = np.asarray(out["last_hidden_state"])
    expected = {
        "embeds": out["embeds"][:, None],
        "pooled": out["pooled"],
        "full": whole,
        "patches": whole.reshape(6, 2, 13, 10)[:, :, 1:].reshape(6, 24, 10),
    }
    segments = np.array([[1, 2, 3], [1, 0, 0]], np.int32)
    for strategy, features in expected.items():
        config = dataclasses.replace(CONFIG, feature_strategy=strategy)
        module = ImageBindTower(config)
        media = jax.jit(lambda media, module=module: module.apply({"params": params}, media))(Media(values, segments))
        count = config.num_tokens()
        assert media.values.shape == (2, 3 * count, config.feature_width) and media.stage == "encoded"
        np.testing.assert_allclose(media.values.reshape(features.shape), features, atol=2e-5)
        np.testing.assert_array_equal(media.segment_ids, np.repeat(segments, count, axis=1))


@pytest.mark.slow
def test_stochastic_depth_leaves_out_the_last_block_of_some_samples():
    # Equal samples: where both halves of block 1 are left out (0.8 ** 2 of them), block 0 alone is what remains.
    config = dataclasses.replace(CONFIG, drop_path=0.8, clips=1)
    params, values = params_of(config), np.tile(items(config, 1), (300, 1, 1))
    run = lambda seed: ImageBindTower(config).apply(
        {"params": params}, values, method="run", rngs={"dropout": jax.random.key(seed)}
    )["last_hidden_state"]
    run = jax.jit(run)
    out = np.asarray(run(0))
    np.testing.assert_array_equal(out, run(0))
    assert (out != run(1)).any()
    shorter = dataclasses.replace(config, num_layers=1, drop_path=0.0)
    first = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    without = np.asarray(jax.jit(Tower(shorter).__call__)(first, values[:1])["last_hidden_state"])
    share = np.mean(np.abs(out - without).max((1, 2)) < 1e-5)
    # Binomial with mean 0.64 and standard deviation 0.028.
    assert abs(share - 0.64) < 0.1


@pytest.mark.slow
def test_dropout_of_the_head_keeps_the_mean():
    config = dataclasses.replace(CONFIG, head_dropout=0.5, clips=1)
    params, values = params_of(config), np.tile(items(config, 1), (2000, 1, 1))
    run = lambda rngs: ImageBindTower(config).apply({"params": params}, values, method="run", rngs=rngs)["pooled"]
    plain, dropped = (np.asarray(jax.jit(run)(rngs))[:, 0] for rngs in (None, {"dropout": jax.random.key(0)}))
    assert dropped.std(0).min() > 0.05 and plain.std(0).max() < 1e-4
    assert np.all(np.abs(dropped.mean(0) - plain[0]) < 5 * dropped.std(0) / np.sqrt(2000))


@pytest.mark.slow
def test_the_scale_is_trained_where_asked():
    config, params = dataclasses.replace(CONFIG, num_layers=1, clips=1), params_of(CONFIG)
    params["blocks"] = jax.tree.map(lambda leaf: leaf[:1], params["blocks"])
    values = items(config, 2)
    for learned in (False, True):
        tower = Tower(dataclasses.replace(config, learned_scale=learned))
        loss = lambda params, tower=tower: jnp.sum(tower(params, values)["embeds"][:, 0])
        slope = jax.jit(jax.grad(loss))(params)
        assert (slope["logit_scale"] != 0) == learned and np.abs(slope["projection"]["kernel"]).max() > 0


def test_errors():
    with pytest.raises(ValueError, match=r"audio items have shape \[2, 15, 10\], but the encoder takes \[2, 15, 11\]"):
        Tower(CONFIG)(params_of(CONFIG), jnp.zeros((1, 2, 15, 10)))
    with pytest.raises(ConfigError, match="imagebind.window of audio has 2 sizes"):
        dataclasses.replace(CONFIG, window=(4,), stride=None)
    with pytest.raises(ConfigError, match=r"imagebind.window \[12, 4\] is larger than a clip of \[11, 15\]"):
        dataclasses.replace(CONFIG, window=(12, 4))
    with pytest.raises(ConfigError, match=r"imagebind.drop_path must be in \[0, 1\), got 1.0"):
        dataclasses.replace(CONFIG, drop_path=1.0)
