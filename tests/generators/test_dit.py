"""DiT by itself: blocks that start as the identity, no class, gradients with rematerialisation, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data.contracts import Condition
from mmjax.generators.dit import DiT, DiTConfig

CONFIG = DiTConfig(in_channels=3, out_channels=3, patch=2, width=8, num_heads=2, num_layers=2, num_classes=4)


@pytest.fixture(scope="module")
def params():
    module = DiT(CONFIG)
    return nn.unbox(jax.jit(lambda key: module.init(key, jnp.zeros((1, 2, 4, 3)), method="create"))(jax.random.key(0)))


def test_blocks_start_as_the_identity_and_no_class_is_the_last(params):
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    apply = jax.jit(DiT(CONFIG).apply)

    def run(params, times, classes):
        return apply(params, x, jnp.array(times), Condition(None, extras={"classes": jnp.array(classes)}))

    # Whatever the time and the class: nothing is modulated yet.
    np.testing.assert_allclose(run(params, [7, 7], [4, 4]), run(params, [900, 1], [1, 3]), atol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    none = run(moved, [7, 7], [4, 4])
    np.testing.assert_allclose(apply(moved, x, jnp.array([7, 7])), none, atol=1e-6)
    assert np.abs(none - run(moved, [7, 7], [4, 0])).max() > 1e-3


@pytest.mark.slow
def test_rematerialisation_and_a_tuple_of_blocks_change_nothing(params):
    x = jax.random.normal(jax.random.key(1), (1, 4, 2, 3))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, params)
    slope = lambda remat: jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(DiT(CONFIG, remat=remat).apply(p, x, 3)))))
    for a, b in zip(*(jax.tree.leaves(slope(remat)(moved)) for remat in ("none", "full")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(a).max())))
    blocks = moved["params"]["blocks"]
    loose = tuple(jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks) for layer in range(2))
    run = jax.jit(DiT(CONFIG).apply)
    np.testing.assert_allclose(run({"params": {**moved["params"], "blocks": loose}}, x, 3), run(moved, x, 3), atol=1e-5)


def test_what_does_not_fit_is_named(params):
    for shape, message in (
        ((1, 4, 4, 2), r"latents are \(1, 4, 4, 2\); wanted \[B, h, w, 3\]"),
        ((1, 4, 5, 3), "latents of 4 x 5 places; sides must be multiples of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x: DiT(CONFIG).apply(params, x, 3), jnp.zeros(shape))
