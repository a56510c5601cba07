"""RoIAlign and pooling under masks against loops in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.nn.regions import mask_pool, roi_align

FEATURES = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)
# In pixels of an image of 28 x 36, four a cell: inside, over an edge, far outside, thin, the whole, one point.
BOXES = np.array(
    [
        [[3.0, 2.0, 17.5, 20.0], [-9.0, 14.0, 5.0, 40.0], [60.0, 1.0, 90.0, 9.0]],
        [[10.0, 5.0, 10.7, 27.0], [0.0, 0.0, 36.0, 28.0], [8.0, 8.0, 8.0, 8.0]],
    ],
    np.float32,
)


def sample(image, y, x):
    """The value of a map [H, W, C] at one place, as the published kernels read it."""
    height, width = image.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[-1])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def slow_roi_align(image, box, out_size, scale, ratio, aligned):
    x1, y1, x2, y2 = np.asarray(box, np.float64) * (scale[1], scale[0], scale[1], scale[0])
    if aligned:
        x1, y1, x2, y2 = x1 - 0.5, y1 - 0.5, x2 - 0.5, y2 - 0.5
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    out = np.zeros((*out_size, image.shape[-1]))
    for p, q in np.ndindex(*out_size):
        for i, j in np.ndindex(ratio, ratio):
            y = y1 + (p + (i + 0.5) / ratio) * height / out_size[0]
            x = x1 + (q + (j + 0.5) / ratio) * width / out_size[1]
            out[p, q] += sample(image.astype(np.float64), y, x) / ratio**2
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("out_size, ratio", [((3, 2), 2), ((1, 1), 3), ((5, 4), 1)])
def test_roi_align(out_size, ratio, aligned):
    run = jax.jit(roi_align, static_argnums=(2, 3, 4, 5))
    # No sample may lie just where the map ends: rounding would decide whether it counts.
    for scale in (0.25, (0.25, 0.31)):
        found = run(FEATURES, BOXES, out_size, scale, ratio, aligned)
        assert found.shape == (2, 3, *out_size, 3)
        both = (scale, scale) if isinstance(scale, float) else scale
        for row, region in itertools.product(range(2), range(3)):
            slow = slow_roi_align(FEATURES[row], BOXES[row, region], out_size, both, ratio, aligned)
            np.testing.assert_allclose(found[row, region], slow, atol=1e-5)


def test_roi_align_of_a_ramp_is_exact():
    # A linear map is read back linearly, so each cell of a box inside holds its own centre.
    rows, columns = np.mgrid[:8, :8].astype(np.float32) + 0.5
    ramp, box = np.stack([rows, columns], -1)[None], np.array([[[1.0, 2.0, 5.0, 7.0]]])
    found = jax.jit(roi_align, static_argnums=2)(ramp, box, (5, 2))
    np.testing.assert_allclose(found[0, 0, :, 0, 0], [2.5, 3.5, 4.5, 5.5, 6.5], atol=1e-5)
    np.testing.assert_allclose(found[0, 0, 0, :, 1], [2.0, 4.0], atol=1e-5)


def test_roi_align_has_gradients():
    slope = jax.jit(jax.grad(lambda x: jnp.sum(roi_align(x, BOXES[:, :1], (2, 2), 0.25))))(FEATURES)
    # The means of a box inside are weighted by 1 in all.
    np.testing.assert_allclose(slope[0].sum(axis=(0, 1)), 4, atol=1e-4)
    half = jax.eval_shape(lambda x: roi_align(x, BOXES, (2, 2)), jax.ShapeDtypeStruct(FEATURES.shape, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(7, 9), (14, 18), (23, 31), (4, 5)])
def test_mask_pool(size):
    masks = np.random.default_rng(1).uniform(size=(2, 3, *size)) > 0.7
    masks[0, 1] = False
    found = jax.jit(mask_pool)(FEATURES, masks)
    resized = F.interpolate(torch.tensor(masks, dtype=torch.float32), size=(7, 9), mode="bilinear").numpy()
    for row, region in np.ndindex(2, 3):
        kept = FEATURES[row][resized[row, region] > 0]
        expected = kept.mean(axis=0) if len(kept) else np.zeros(3)
        np.testing.assert_allclose(found[row, region], expected, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"boxes are \(2, 4\)"):
        roi_align(FEATURES, BOXES[:, 0], (2, 2))
    with pytest.raises(ValueError, match=r"boxes are \(1, 3, 4\)"):
        roi_align(FEATURES, BOXES[:1], (2, 2))
    with pytest.raises(ValueError, match="sampling_ratio 0"):
        roi_align(FEATURES, BOXES, (2, 2), sampling_ratio=0)
    with pytest.raises(ValueError, match=r"masks are \(2, 7, 9\)"):
        mask_pool(FEATURES, np.ones((2, 7, 9)))
