"""PixArt by itself: axes, and what is masked or rematerialised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data.contracts import Condition
from mmjax.distributed.rules import spec
from mmjax.generators.pixart import PixArt, PixArtConfig
from mmjax.paths import flatten

CONFIG = PixArtConfig(
    in_channels=3, out_channels=3, width=12, num_heads=2, num_layers=2, context_width=5, reads_size=False
)


def made():
    x = jnp.zeros((1, *CONFIG.feature_shape))
    return PixArt(CONFIG).init(jax.random.key(0), x, method="create")["params"]


def test_every_leaf_has_axes():
    for path, box in flatten(jax.eval_shape(made)).items():
        assert len(box.names) == box.value.ndim, path
        spec(box.names)


@pytest.mark.slow
def test_masked_tokens_count_for_nothing_and_blocks_may_be_run_again():
    params = nn.unbox(jax.jit(made)())
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    x, sequence = (jax.random.normal(jax.random.key(at), shape) for at, shape in ((0, (2, 4, 6, 3)), (1, (2, 5, 5))))
    mask = jnp.arange(5) < jnp.array([[3], [5]])

    def total(remat, sequence, mask):
        out = PixArt(CONFIG, remat=remat).apply({"params": params}, x, 40, Condition(sequence, mask))
        return jnp.sum(jnp.square(out[:1])), out

    slope = jax.jit(jax.value_and_grad(total, argnums=1, has_aux=True), static_argnums=0)
    (_, out), plain = slope("none", sequence, mask)
    np.testing.assert_allclose(out[:1], slope("none", sequence[:, :3], None)[0][1][:1], atol=1e-5)
    assert np.all(plain[0, 3:] == 0) and np.abs(plain[0, :3]).max() > 0
    np.testing.assert_allclose(slope("full", sequence, mask)[1], plain, atol=1e-4)
