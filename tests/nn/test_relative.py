"""Buckets of distances against transformers' T5, and a bias on attention's logits against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from mmjax.nn.attention import Attention, attend
from mmjax.nn.relative import RelativeBias, relative_buckets


@pytest.mark.parametrize("buckets, most", [(32, 128), (8, 11), (4, 4), (30, 97), (64, 1000)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_transformers_at_every_distance(buckets, most, bidirectional):
    keys_after = torch.arange(most, -most - 1, -1)  # theirs counts from the query to the key
    theirs = T5Attention._relative_position_bucket(keys_after, bidirectional, buckets, most)
    np.testing.assert_array_equal(relative_buckets(buckets, most, bidirectional), theirs.numpy())
    further = T5Attention._relative_position_bucket(torch.tensor([-3 * most, 3 * most]), bidirectional, buckets, most)
    np.testing.assert_array_equal(relative_buckets(buckets, most, bidirectional)[[-1, 0]], further.numpy())


def test_the_bias_of_a_head_is_its_entry_of_the_table():
    module = RelativeBias(num_heads=3, num_buckets=8, max_distance=11, bidirectional=True)
    distances = np.random.default_rng(0).integers(-30, 31, (2, 5, 4))
    params = module.init(jax.random.key(0), distances)
    table = np.asarray(params["params"]["embedding"].value)
    bucket = relative_buckets(8, 11, True)[np.clip(distances, -11, 11) + 11]
    np.testing.assert_array_equal(module.apply(params, distances), table[bucket].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("heads, kv_heads", [(3, 3), (6, 2)])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_bias_on_the_logits_equals_torch(heads, kv_heads, rows):
    rng = np.random.default_rng(heads)
    q = rng.normal(size=(2, 5, heads, 7)).astype(np.float32)
    k, v = (rng.normal(size=(2, kv_heads, 9, 7)).astype(np.float32) for _ in range(2))
    bias = rng.normal(size=(rows, heads, 5, 9)).astype(np.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).transpose(1, 2), torch.tensor(k), torch.tensor(v), torch.tensor(bias), scale=1.0,
        enable_gqa=True,
    )  # fmt: skip
    mine = attend(q, k, v, None, scale=1.0, bias=jnp.asarray(bias))
    np.testing.assert_allclose(mine, theirs.transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.slow
def test_keys_made_once_give_what_a_source_gives():
    module = Attention(width=12, num_heads=4, num_kv_heads=2, head_dim=6, qkv_bias=True, out_bias=True, qkv_clip=0.7)
    x, source = jax.random.normal(jax.random.key(0), (2, 5, 12)), jax.random.normal(jax.random.key(1), (2, 8, 12))
    mask = jax.random.bernoulli(jax.random.key(2), 0.6, (2, 1, 8)).at[:, :, 0].set(True)
    params = module.init(jax.random.key(3), x)
    keys = module.apply(params, source, method="keys")
    assert keys[0].shape == (2, 2, 8, 6)
    crossed = module.apply(params, x, keys, mask, method="cross")
    np.testing.assert_allclose(crossed, module.apply(params, x, mask, source=source)[0], atol=1e-6)
