"""Squares of pixels and their principal components, beside numpy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.generators.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig, apart
from mmjax.train.patch_basis import fit_patches


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(random.normal(size=(7, 12, 20, 3)), axis=1), axis=2)
    return (smooth / np.abs(smooth).max()).astype(np.float32)


def test_a_square_is_cut_row_by_row(images):
    squares = apart(images, 4, 3)
    assert squares.shape == (7, 3, 5, 48)
    np.testing.assert_array_equal(squares[2, 1, 3], images[2, 4:8, 12:16].reshape(-1))


def test_all_directions_lose_nothing(images):
    config, params = fit_patches(PatchAutoencoderConfig(4, 48), images)
    module, variables = PatchAutoencoder(config), {"params": params}
    latents = module.apply(variables, images, method="encode")
    np.testing.assert_allclose(module.apply(variables, latents, method="decode"), images, atol=1e-5)


@pytest.mark.parametrize("patch, channels", [(4, 7), (2, 5)])
def test_few_directions_are_the_best_ones(images, patch, channels):
    config, params = fit_patches(PatchAutoencoderConfig(patch, channels), images)
    module, variables = PatchAutoencoder(config), {"params": params}
    latents = np.asarray(module.apply(variables, images, method="encode"))
    squares = np.asarray(apart(images, patch, 3)).reshape(-1, patch * patch * 3).astype(np.float64)
    left, values, right = np.linalg.svd(squares - squares.mean(0), full_matrices=False)
    wanted = squares.mean(0) + (left[:, :channels] * values[:channels]) @ right[:channels]
    drawn = np.asarray(apart(module.apply(variables, latents, method="decode"), patch, 3)).reshape(wanted.shape)
    np.testing.assert_allclose(drawn, wanted, atol=2e-5)
    # Each channel differs more than the next one, and all together have a variance of 1 after scaling.
    spread = latents.reshape(-1, channels).var(0)
    assert (np.diff(spread) <= 1e-6).all()
    assert (latents * config.scale).reshape(-1, channels).var(0).mean() == pytest.approx(1, rel=1e-4)


def test_fresh_parameters_have_orthonormal_directions():
    config = PatchAutoencoderConfig(3, 5, 2)
    params = PatchAutoencoder(config).init(jax.random.key(0), jnp.zeros((1, *config.feature_shape)), method="create")
    basis = jax.tree.leaves(params["params"]["basis"])[0]
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-5)


def test_what_cannot_be_fitted_is_said(images):
    with pytest.raises(ConfigError, match="latent_channels must be from 1 to 12"):
        PatchAutoencoderConfig(2, 13)
    with pytest.raises(ValueError, match="multiples of 8"):
        fit_patches(PatchAutoencoderConfig(8, 5), images)
    with pytest.raises(ValueError, match="6 squares for 40 directions"):
        fit_patches(PatchAutoencoderConfig(4, 40), images[:1, :8, :12])
    with pytest.raises(ValueError, match="the same"):
        fit_patches(PatchAutoencoderConfig(2, 4), np.ones_like(images))
