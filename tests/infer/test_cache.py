"""The cache's layout and the unstacked view of parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backbones.decoder import DecoderConfig
from mmjax.infer.cache import empty_cache, is_unstacked, unstack

CONFIG = DecoderConfig(vocab_size=11, width=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=20)


def test_empty_cache_is_head_major_and_one_pair_a_layer():
    cache = empty_cache(CONFIG, 5, 7, jnp.bfloat16)
    assert len(cache) == 3 and all(len(pair) == 2 for pair in cache)
    assert {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(cache)} == {((5, 2, 7, 6), jnp.dtype("bfloat16"))}


def test_empty_cache_for_stacked_blocks_has_a_layer_axis():
    k, v = empty_cache(CONFIG, 5, 7, stacked=True)
    assert k.shape == v.shape == (3, 5, 2, 7, 6) and k.dtype == jnp.float32


def test_unstack_splits_every_stack_and_shares_the_rest():
    rng = np.random.default_rng(0)
    kernel, encoder_kernel, table = (
        rng.normal(size=(3, 4, 5)),
        rng.normal(size=(2, 6)),
        rng.normal(size=(9, 4)),
    )
    params = {
        "backbone": {
            "embed": {"embedding": table},
            "blocks": {"attn": {"q": {"kernel": kernel}}, "norm": {"scale": np.arange(3.0)}},
        },
        "encoders": {"image": {"blocks": {"mlp": {"kernel": encoder_kernel}}, "patch": {"kernel": table}}},
    }
    view = unstack(params)
    assert is_unstacked(view) and not is_unstacked(params)
    assert view["backbone"]["embed"]["embedding"] is table
    blocks = view["backbone"]["blocks"]
    assert isinstance(blocks, tuple) and len(blocks) == 3
    for layer in range(3):
        np.testing.assert_array_equal(blocks[layer]["attn"]["q"]["kernel"], kernel[layer])
        assert blocks[layer]["norm"]["scale"] == layer
    assert len(view["encoders"]["image"]["blocks"]) == 2
    again = unstack(view)
    assert again["backbone"]["blocks"] is blocks


def test_unstack_leaves_blocks_that_are_no_stack():
    params = {
        "backbone": {"blocks": ()},
        "encoders": {"image": {"blocks": {"a": {"w": np.ones((2, 3))}, "b": {"w": np.ones(5)}}}},
    }
    assert unstack(params)["encoders"]["image"]["blocks"].keys() == {"a", "b"}
