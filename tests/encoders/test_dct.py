"""Cosine coefficients of blocks against scipy, and the tower that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from flax import linen as nn

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dct import DCT, DCTConfig, block_dct
from mmjax.encoders.swin import Swin, SwinConfig

SWIN = SwinConfig(image_size=16, patch_size=4, width=6, depths=(1, 1), num_heads=(2, 3), window_size=2)


@pytest.mark.parametrize("size, height, width", [(8, 16, 24), (4, 4, 12), (5, 10, 5), (1, 3, 2)])
def test_blocks_are_scipys_and_come_back(size, height, width):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    found = np.asarray(block_dct(jnp.asarray(images), size))
    for row in range(0, height, size):
        for column in range(0, width, size):
            block = images[:, row : row + size, column : column + size]
            wanted = scipy.fft.dctn(block.astype(np.float64), axes=(1, 2), norm="ortho")
            np.testing.assert_allclose(found[:, row : row + size, column : column + size], wanted, atol=1e-5)
    np.testing.assert_allclose(block_dct(jnp.asarray(found), size, inverse=True), images, atol=1e-5)
    with pytest.raises(ValueError, match="no whole number of blocks of 7 x 7"):
        block_dct(jnp.asarray(images), 7)


@pytest.mark.slow
def test_the_tower_reads_coefficients():
    config, images = DCTConfig(SWIN), np.random.default_rng(1).normal(size=(1, 2, 16, 16, 3)).astype(np.float32)
    module = DCT(config)
    params = nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), method="create")["params"])
    out = module.apply({"params": params}, Media(images))
    assert out.values.shape == (1, 2 * config.num_tokens(), config.feature_width) and config.num_tokens() == 4
    turned = scipy.fft.dctn(images.reshape(1, 2, 4, 4, 4, 4, 3), axes=(3, 5), norm="ortho").reshape(images.shape)
    wanted = Swin(SWIN).apply({"params": params["encoder"]}, Media(turned.astype(np.float32)))
    np.testing.assert_allclose(out.values, wanted.values, atol=1e-5)
    assert DCTConfig(SwinConfig(2560, 8, 128, (2, 2, 18, 2), (4, 8, 16, 32), 10)).num_tokens() == 1600
    with pytest.raises(ConfigError, match="image_size 18 is no whole number of blocks of 4"):
        DCTConfig(SwinConfig(18, 4, 6, (1,), (2,), 2))
