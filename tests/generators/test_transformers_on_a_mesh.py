"""DiT, PixArt and MMDiT on eight devices: the numbers and the gradients of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data.contracts import Condition
from mmjax.distributed.mesh import MeshConfig, check_fits, make_mesh
from mmjax.distributed.rules import shardings
from mmjax.generators.dit import DiT, DiTConfig
from mmjax.generators.mmdit import MMDiT, MMDiTConfig
from mmjax.generators.pixart import PixArt, PixArtConfig

SMALL = {"in_channels": 3, "out_channels": 3, "width": 24, "num_heads": 2, "sample_size": 4}
MODULES = {
    "dit": DiT(DiTConfig(num_layers=2, num_classes=4, **SMALL)),
    "pixart": PixArt(PixArtConfig(num_layers=2, context_width=6, **SMALL)),
    "mmdit": MMDiT(MMDiTConfig(num_layers=3, twice_layers=1, context_width=6, pooled_width=4, max_grid=2, **SMALL)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_mesh_changes_no_number_and_no_gradient(name):
    module = MODULES[name]
    first = jnp.zeros((1, *module.config.feature_shape))
    boxed = jax.jit(lambda key: module.init(key, first, method="create"))(jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), nn.unbox(boxed))
    rng = np.random.default_rng(0)
    x, sequence, pooled = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 4, 4, 3), (4, 5, 6), (4, 4)))
    extras = {"classes": np.arange(4), "resolution": np.ones((4, 2)), "aspect_ratio": np.ones((4, 1))}
    condition = Condition(sequence, np.arange(5) < np.array([[5], [2], [3], [4]]), pooled, extras)

    def loss(params, x):
        out = module.apply({"params": params}, x, jnp.arange(4) * 100, condition)
        return jnp.mean(jnp.square(out)), out

    run = jax.value_and_grad(loss, has_aux=True)
    (_, out), slopes = jax.jit(run)(params, x)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    names = jax.tree.map(lambda leaf: leaf.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    check_fits(params, names, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(names, mesh))
        (_, out_there), slopes_there = jax.jit(run)(placed, x)
    np.testing.assert_allclose(out_there, out, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes_there, slopes)
