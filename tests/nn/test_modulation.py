"""Norms that a vector scales and shifts, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from mmjax.nn.modulation import Modulation, modulated, plain_norm


def test_equal_torch():
    rng = np.random.default_rng(0)
    x, shift, scale = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 5), (2, 1, 5), (2, 1, 5)))
    normed = torch.nn.functional.layer_norm(torch.tensor(x), (5,), eps=1e-3)
    np.testing.assert_allclose(plain_norm(x, 1e-3), normed, atol=1e-5)
    np.testing.assert_allclose(modulated(x, shift, scale, 1e-3), normed.numpy() * (1 + scale) + shift, atol=1e-5)
    assert plain_norm(jnp.asarray(x, jnp.bfloat16), 1e-3).dtype == jnp.bfloat16


def test_vectors_start_at_zero_and_are_linear_in_silu():
    module, vector = Modulation(3, 4), jax.random.normal(jax.random.key(0), (2, 5))
    params = nn.unbox(module.init(jax.random.key(1), vector))
    assert all(np.all(part == 0) and part.shape == (2, 1, 4) for part in module.apply(params, vector))
    kernel, bias = (jax.random.normal(jax.random.key(at), leaf) for at, leaf in ((2, (5, 3, 4)), (3, (3, 4))))
    parts = module.apply({"params": {"kernel": kernel, "bias": bias}}, vector)
    for number, part in enumerate(parts):
        wanted = jax.nn.silu(vector) @ kernel[:, number] + bias[number]
        np.testing.assert_allclose(part[:, 0], wanted, atol=1e-5)
