"""Scanned, looped and rematerialised stacks give the same values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.nn.block import Block, BlockConfig
from mmjax.nn.stack import depth, init_stack, run_groups, run_stack, side_by_side

BLOCK = Block(BlockConfig(10, 14, 2, 1, 4, "silu", "rms", 1e-6, gated=True), parent=None)


def stacked(layers=3):
    return nn.unbox(jax.jit(init_stack(BLOCK, layers, jnp.zeros((1, 1, 10))))(jax.random.key(0)))


def unstacked(blocks):
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(depth(blocks)))


def apply(params, x, cache):
    return BLOCK.apply({"params": params}, x, cache=cache)


X = jax.random.normal(jax.random.key(1), (2, 4, 10))


@pytest.mark.slow
def test_layers_differ_and_are_named_on_their_leading_axis():
    boxed = init_stack(BLOCK, 3, jnp.zeros((1, 1, 10)))(jax.random.key(0))
    kernel = boxed["attn"]["q"]["kernel"]
    assert kernel.names == ("layers", "embed", "heads", "head_dim") and kernel.value.shape == (3, 10, 2, 4)
    assert not np.allclose(kernel.value[0], kernel.value[1])


@pytest.mark.quick("full")
@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scan_loop_and_remat_agree(remat):
    blocks = stacked()
    loss = lambda blocks: jnp.sum(run_stack(apply, blocks, X, remat=remat)[0] ** 2)
    value, gradient = jax.jit(jax.value_and_grad(loss))(blocks)
    looped_value, looped = jax.jit(jax.value_and_grad(loss))(unstacked(blocks))
    np.testing.assert_allclose(value, looped_value, rtol=1e-5)
    for layer in range(3):
        jax.tree.map(
            lambda a, b, layer=layer: np.testing.assert_allclose(a[layer], b, rtol=2e-4, atol=1e-4),
            gradient,
            looped[layer],
        )


@pytest.mark.slow
def test_part_of_a_stack_then_the_rest_is_the_whole():
    blocks = stacked()
    whole, _ = run_stack(apply, blocks, X)
    for form in (blocks, unstacked(blocks)):
        half, _ = run_stack(apply, form, X, stop=2)
        rest, _ = run_stack(apply, form, half, start=2)
        np.testing.assert_allclose(rest, whole, atol=1e-5)


def test_unknown_remat_is_named():
    with pytest.raises(ConfigError, match='"full"'):
        run_stack(apply, stacked(), X, remat="ful")


@pytest.mark.slow
def test_groups_with_a_layer_of_another_stack_before_each():
    blocks, others = stacked(4), stacked(2)
    before = lambda params, x: apply(params, x, None)[0]
    counted = lambda layer, x, cache: (apply(layer["block"], x, None)[0], cache + layer["number"])
    loop, between, x = unstacked(blocks), unstacked(others), X
    for layer in range(4):
        x = before(between[layer // 2], x) if layer % 2 == 0 else x
        x, _ = apply(loop[layer], x, None)
    many = side_by_side(block=blocks, number=jnp.arange(4))
    for remat in ("none", "full"):
        out, cache = run_groups(before, others, counted, many, X, jnp.full((4, 2), 10), remat)
        np.testing.assert_allclose(out, x, atol=1e-5)
        np.testing.assert_array_equal(cache, [[10, 10], [11, 11], [12, 12], [13, 13]])
    single = side_by_side(block=loop, number=tuple(range(4)))
    out, cache = run_groups(before, between, counted, single, X, (10,) * 4)
    np.testing.assert_allclose(out, x, atol=1e-5)
    assert cache == (10, 11, 12, 13)
    assert run_groups(before, others, apply, blocks, X)[1] is None
