"""Stochastic depth: whole samples, in the right number, and no change of the mean."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.nn.drop_path import drop_path, drop_rates


def test_whole_samples_are_left_out():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 3, 2)), jnp.float32)
    out = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    left_out = (out == 0).all((1, 2))
    np.testing.assert_allclose(out[~left_out], np.asarray(x)[~left_out] / 0.7, rtol=1e-6)
    # Binomial with mean 0.3 and standard deviation 0.007.
    assert abs(left_out.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(drop_path(x, 0.0, jax.random.key(1)), x)


def test_rates():
    np.testing.assert_allclose(drop_rates(0.6, 4), [0, 0.2, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(drop_rates(0.6, 1), [0])
