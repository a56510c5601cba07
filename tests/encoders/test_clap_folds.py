"""How CLAP's tower makes an image of a spectrogram, and a line of frequencies and times of the last map."""

import numpy as np
import pytest
import torch

from mmjax.encoders.clap import STRETCH, CLAPConfig, fold, overlapping_patches, stretch_matrix, unfold

SIZES = dict(width=6, depths=(1, 1), num_heads=(2, 3), window_size=2, patch_size=4, patch_stride=2)


@pytest.mark.parametrize("source, target", [(53, 64), (2, 9), (1, 5), (7, 7), (100, 101)])
def test_stretching_equals_torch(source, target):
    line = np.random.default_rng(0).normal(size=(source,)).astype(np.float32)
    given = torch.tensor(np.tile(line[:, None], (1, 3)))[None, None]
    wanted = torch.nn.functional.interpolate(given, (target, 3), mode="bicubic", align_corners=True)[0, 0, :, 1]
    matrix = stretch_matrix(source, target)
    np.testing.assert_allclose(matrix @ line, wanted, atol=1e-5)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    if source == target:
        np.testing.assert_array_equal(matrix, np.eye(source, dtype=np.float32))


def test_folding_and_unfolding():
    config = CLAPConfig(64, 16, 32, **SIZES)
    assert config.folds == 2 and config.item_shape == (1, 64, 16) and config.num_tokens() == 64
    assert CLAPConfig().item_shape == (1, 1001, 64) and CLAPConfig().num_tokens() == 64
    assert CLAPConfig(fusion=True).item_shape == (4, 1001, 64)
    mel = np.random.default_rng(0).normal(size=(2, 3, 64, 16)).astype(np.float32)
    image = np.asarray(fold(mel, config))
    assert image.shape == (2, 32, 32, 3)
    # Row 16 + f of the image is band f of the second half of time.
    np.testing.assert_allclose(image[1, 16 + 5, :, 2], mel[1, 2, 32:, 5], atol=1e-6)
    np.testing.assert_allclose(unfold(image, 2), mel.transpose(0, 3, 2, 1), atol=1e-6)
    # Both axes are stretched where both are short.
    short = np.asarray(fold(mel[:, :, :50, :13], CLAPConfig(50, 13, 32, **SIZES)))
    back = np.asarray(unfold(short, 2))
    assert back.shape == (2, 16, 64, 3)
    for frame, band in ((0, 0), (49, 0), (0, 12), (49, 12)):
        np.testing.assert_allclose(back[:, band and 15, frame and 63], mel[:, :, frame, band], atol=1e-5)


@pytest.mark.parametrize("stretch", [1, STRETCH])
def test_patches_are_those_of_a_convolution(stretch):
    config = CLAPConfig(64, 16, 32, **SIZES)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32)).astype(np.float32)
    kernel = rng.normal(size=(5, 1, 4, 4 * stretch)).astype(np.float32)
    options = dict(stride=(2, 2 * stretch), padding=1)
    wanted = torch.nn.functional.conv2d(torch.tensor(images)[:, None], torch.tensor(kernel), **options)
    patches = overlapping_patches(images, config, stretch)
    mine = np.einsum("brchwo,dohw->bdrc", patches, kernel)
    np.testing.assert_allclose(mine, wanted, atol=1e-4)
