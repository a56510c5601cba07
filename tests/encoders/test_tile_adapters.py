"""Tiles through one tower: adapters against a loop, windows over the borders of tiles by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.across_tiles import AcrossTiles, joined, parted
from mmjax.encoders.tile_adapters import TileAdapters, TileAdaptersConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.nn.lora import LoRAConfig

VIT = ViTConfig(
    image_size=8, patch_size=4, width=12, num_layers=2, num_heads=3, mlp_width=20, class_token=False, pool="none"
)
LORA = LoRAConfig(2, 3.0, ("q", "o", "up", "down"))
CONFIG = TileAdaptersConfig(VIT, (1, 3), LORA)


def randomised(params, seed=1):
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def made():
    module, views = TileAdapters(CONFIG), jnp.zeros((1, *CONFIG.item_shape))
    params = nn.unbox(jax.jit(lambda key: module.init(key, views, method="create"))(jax.random.key(0))["params"])
    images = np.random.default_rng(0).normal(size=(2, 2, *CONFIG.item_shape)).astype(np.float32)
    return module, params, images


def with_adapter(tower, adapters, tile):
    """The tower with the products of one tile's adapters added, kernel by kernel, layer by layer."""
    blocks = jax.tree.map(lambda leaf: np.array(leaf, np.float64), tower["blocks"])
    for half, maps in adapters.items():
        for name, leaves in maps.items():
            kernel = blocks[half][name]["kernel"]
            for layer in range(VIT.num_layers):
                a, b = (np.asarray(leaves[x][tile][layer], np.float64) for x in ("lora_a", "lora_b"))
                product = a.reshape(-1, 2) @ b.reshape(2, -1) * (3.0 / 2)
                kernel[layer] += product.reshape(kernel[layer].shape)
    return {**tower, "blocks": jax.tree.map(np.float32, blocks)}


def test_every_tile_has_its_own_adapter(made):
    module, params, images = made
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(params["adapters"])} == {(3, 2)}
    assert set(params["adapters"]["attn"]) == {"q", "o"} and set(params["adapters"]["mlp"]) == {"up", "down"}
    params = randomised(params)
    segments = np.array([[1, 2], [1, 0]], np.int32)
    out = jax.jit(lambda p, media: module.apply({"params": p}, media))(params, Media(images, segments))
    assert out.values.shape == (2, 2 * 4 * 4, 12) and out.stage == "encoded"
    np.testing.assert_array_equal(out.segment_ids, np.repeat(segments, 16, axis=1))
    found = np.asarray(out.values).reshape(2, 2, 4, 4, 12)
    tower = jax.jit(lambda p, views: ViT(VIT).apply({"params": p}, Media(views)).values)
    for view in range(4):
        own = params["tower"] if view == 0 else with_adapter(params["tower"], params["adapters"], view - 1)
        wanted = tower(own, images[:, :, view]).reshape(2, 2, 4, 12)
        np.testing.assert_allclose(found[:, :, view], wanted, atol=1e-5)


@pytest.mark.slow
def test_fresh_adapters_change_nothing_and_learn_apart(made):
    module, params, images = made
    plain = TileAdapters(TileAdaptersConfig(VIT, (1, 3)))
    values = images[:1, 0]
    run = jax.jit(lambda p: module.apply({"params": p}, values, method="run")["last_hidden_state"])
    bare = plain.apply({"params": {"tower": params["tower"]}}, values, method="run")["last_hidden_state"]
    np.testing.assert_allclose(run(params), bare, atol=1e-6)

    def loss(adapters):
        out = module.apply({"params": {**params, "adapters": adapters}}, values, method="run")["last_hidden_state"]
        return jnp.sum(out.reshape(4, -1)[2] ** 2)

    gradient = jax.jit(jax.grad(loss))(params["adapters"])["attn"]["o"]["lora_b"]
    assert not gradient[0].any() and gradient[1].any() and not gradient[2].any()


def test_joined_tiles_are_one_map_and_back():
    tiles = np.arange(2 * 6 * 4 * 1).reshape(2, 6, 4, 1)
    whole = np.asarray(joined(tiles, (2, 3)))
    assert whole.shape == (2, 4, 6, 1)
    for tile in range(6):
        row, column = divmod(tile, 3)
        part = whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(part.reshape(2, 4, 1), tiles[:, tile])
    np.testing.assert_array_equal(parted(whole, (2, 3)), tiles)


@pytest.mark.parametrize("layers", [1, 2])
def test_who_sees_whom_over_the_borders(layers):
    """With 2 x 2 places a tile and a shift of one: by brute force on the plane, which does not wrap around."""
    module, grid, side = AcrossTiles(4, 2, 2, layers), (2, 2), 2
    tiles = np.random.default_rng(2).normal(size=(1, 4, 4, 4)).astype(np.float32)
    params = nn.unbox(jax.jit(lambda key: module.init(key, tiles, grid))(jax.random.key(0))["params"])
    run = jax.jit(lambda p, x: joined(module.apply({"params": p}, x, grid), grid))
    np.testing.assert_array_equal(run(params, tiles), joined(tiles, grid))
    params = randomised(params)
    reach = jax.jit(jax.jacobian(lambda x: run(params, parted(x, grid))))(jnp.asarray(joined(tiles, grid)))
    sees = np.abs(np.asarray(reach)).sum(axis=(0, 3, 4, 7)) > 1e-9
    for place in np.ndindex(4, 4):
        for other in np.ndindex(4, 4):
            shifted = all((a + 1) // 2 == (b + 1) // 2 for a, b in zip(place, other, strict=True))
            through = shifted
            if layers == 2:
                # Through any place of one's own window, straight or shifted.
                pairs = lambda a, b: zip(a, b, strict=True)
                middles = [m for m in np.ndindex(4, 4) if all(a // side == b // side for a, b in pairs(place, m))]
                through = any(all((a + 1) // 2 == (b + 1) // 2 for a, b in pairs(m, other)) for m in middles)
            assert sees[place + other] == through, (place, other)


def test_what_does_not_fit_is_refused(made):
    module, params, images = made
    with pytest.raises(ConfigError, match="encoder gives 5 features, its grid has 4"):
        TileAdaptersConfig(ViTConfig(8, 4, 12, 1, 3, 20), (1, 1))
    with pytest.raises(ConfigError, match="grid must be rows and columns"):
        TileAdaptersConfig(VIT, (0, 2))
    with pytest.raises(ConfigError, match="no gate"):
        TileAdaptersConfig(VIT, (1, 2), LoRAConfig(2, 2.0))
    with pytest.raises(ValueError, match=r"views \[4, 8, 8, 3\], got \[3, 8, 8, 3\]"):
        module.apply({"params": params}, images[0, :, :3], method="run")
