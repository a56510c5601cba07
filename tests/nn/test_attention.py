"""Attention against torch's scaled_dot_product_attention; the cache against whole sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.nn.attention import Attention, attend
from mmjax.nn.rotary import rotation


@pytest.mark.parametrize("heads, kv_heads, width", [(1, 1, 3), (6, 2, 5), (7, 7, 8), (4, 1, 16)])
def test_attend_equals_torch_with_grouped_heads_and_a_mask(heads, kv_heads, width):
    rng = np.random.default_rng(heads)
    q = rng.normal(size=(2, 5, heads, width)).astype(np.float32)
    k, v = (rng.normal(size=(2, kv_heads, 9, width)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, 5, 9)) < 0.5
    mask[..., 0] = True
    theirs = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(1, 2),
        torch.tensor(k),
        torch.tensor(v),
        torch.tensor(mask)[:, None],
        enable_gqa=True,
    )
    np.testing.assert_allclose(attend(q, k, v, mask), theirs.transpose(1, 2).numpy(), atol=1e-5)


def test_a_row_that_sees_nothing_stays_finite():
    q = k = v = jnp.ones((1, 2, 2, 4))
    assert np.isfinite(attend(q, k, v, jnp.zeros((1, 2, 2), bool))).all()


def test_cache_gives_what_the_whole_sequence_gives():
    module = Attention(width=12, num_heads=4, num_kv_heads=2, head_dim=6, qkv_bias=True)
    x = jax.random.normal(jax.random.key(0), (2, 7, 12))
    params, apply = jax.jit(module.init)(jax.random.key(1), x), jax.jit(module.apply)
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((7, 7), bool)), (2, 7, 7))
    whole, _ = apply(params, x, causal, rotation(positions, 6, 100.0))
    empty = jnp.zeros((2, 2, 10, 6))
    prefill, cache = apply(
        params, x[:, :4], causal[:, :4, :4], rotation(positions[:, :4], 6, 100.0), (empty, empty), 0
    )
    np.testing.assert_allclose(prefill, whole[:, :4], atol=1e-5)
    for t in range(4, 7):
        mask = jnp.broadcast_to(jnp.arange(10) <= t, (2, 1, 10))
        angles = rotation(positions[:, t : t + 1], 6, 100.0)
        step, cache = apply(params, x[:, t : t + 1], mask, angles, cache, t)
        np.testing.assert_allclose(step[:, 0], whole[:, t], atol=1e-5)


def test_dropped_weights_are_made_up_for():
    """Values that are the unit vectors show the weights themselves; grouped heads, one key that nobody sees."""
    rng = np.random.default_rng(5)
    q = rng.normal(size=(2, 3, 4, 7)).astype(np.float32)
    k = rng.normal(size=(2, 2, 7, 7)).astype(np.float32)
    v = np.broadcast_to(np.eye(7, dtype=np.float32), (2, 2, 7, 7))
    mask = np.ones((2, 1, 7), bool)
    mask[0, 0, 2] = False
    weights = np.asarray(attend(q, k, v, mask))
    one = lambda key: attend(q, k, v, mask, dropout=(0.3, key))
    dropped = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000)))
    kept, seen = dropped != 0, weights > 0
    assert seen.mean() == 13 / 14
    assert abs(kept[:, seen].mean() - 0.7) < 0.005
    larger = np.broadcast_to(weights / 0.7, kept.shape)
    np.testing.assert_allclose(np.where(kept, dropped, larger), larger, rtol=1e-5)
    # The mean over many draws is what there was: every weight by itself, within five standard errors.
    error = weights * np.sqrt(0.3 / 0.7 / len(dropped))
    assert (np.abs(dropped.mean(axis=0) - weights) <= 5 * error + 1e-6).all()
    assert (kept[:, :, :, 0] != kept[:, :, :, 1]).any() and (kept[:, 0, :, 0] != kept[:, 1, :, 0]).any()


def test_attention_drops_where_there_is_a_key():
    x = np.random.default_rng(6).normal(size=(2, 5, 6)).astype(np.float32)
    plain, dropping = (Attention(6, 2, 2, 3, dropout=rate) for rate in (0.0, 0.5))
    params = plain.init(jax.random.key(0), x)
    wanted = plain.apply(params, x)[0]
    np.testing.assert_array_equal(dropping.apply(params, x)[0], wanted)
    np.testing.assert_array_equal(plain.apply(params, x, rngs={"dropout": jax.random.key(1)})[0], wanted)
    one, two = (dropping.apply(params, x, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 2))
    assert min(np.abs(one - wanted).max(), np.abs(one - two).max()) > 1e-3
