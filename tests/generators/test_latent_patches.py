"""Latents in squares: positions as diffusers stretches and crops them, and squares put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from mmjax.generators.latent_patches import patch_grid, stretched_places, together


@pytest.mark.parametrize("grid", [(3, 5), (8, 2)])
def test_positions_equal_diffusers(grid):
    wanted = get_2d_sincos_pos_embed(12, grid, base_size=8, interpolation_scale=2.0)
    np.testing.assert_allclose(stretched_places(12, grid, 8, 2.0).reshape(-1, 12), wanted, atol=1e-5)


def test_together_puts_every_place_where_it_was():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    grid = patch_grid(x, 3, 2)
    assert grid == (3, 2)
    tokens = jnp.stack([
        x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, -1)
        for row in range(3)
        for column in range(2)
    ], axis=1)  # fmt: skip
    np.testing.assert_array_equal(together(tokens, grid, 2), x)
