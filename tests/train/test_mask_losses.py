"""Losses of masks against their closed form and torch's autograd."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.train.mask_losses import mask_bce, mask_dice, mask_loss


def batch(seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (2, 3, 7, 5)).astype(np.float32)
    return logits, (random.uniform(size=logits.shape) > 0.6).astype(np.float32)


def reference(logits, targets):
    """Both losses of each mask as LISA's published code has them."""
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(-2).mean(-1)
    inside, truth = logits.sigmoid().flatten(-2) / 1000, targets.flatten(-2)
    both = 2 * (inside * truth).sum(-1)
    return bce, 1 - (both + 1e-6) / (inside.sum(-1) + (truth / 1000).sum(-1) + 1e-6)


def test_each_mask_and_gradients():
    logits, targets = batch()
    theirs = torch.tensor(logits, requires_grad=True)
    bce, dice = reference(theirs, torch.tensor(targets))
    np.testing.assert_allclose(mask_bce(logits, targets), bce.detach(), rtol=1e-5)
    np.testing.assert_allclose(mask_dice(logits, targets), dice.detach(), rtol=1e-5)
    (2 * bce.sum() + 0.5 * dice.sum()).backward()
    run = jax.jit(jax.value_and_grad(lambda x: mask_loss(x, targets), has_aux=True))
    (total, aux), slope = run(logits)
    np.testing.assert_allclose(total, (2 * bce.sum() + 0.5 * dice.sum()).item(), rtol=1e-5)
    np.testing.assert_allclose(slope, theirs.grad, atol=1e-6)
    assert aux["weight"] == 6
    np.testing.assert_allclose([aux["bce"], aux["dice"]], [bce.sum().item(), dice.sum().item()], rtol=1e-5)


def test_closed_form():
    # Half of the pixels inside, all logits 0: every pixel costs ln 2; the overlap is 2 * (1/4) / (1/2 + 1/2).
    logits, targets = np.zeros((1, 1, 2, 50), np.float32), np.zeros((1, 1, 2, 50), np.float32)
    targets[:, :, 0] = 1
    np.testing.assert_allclose(mask_bce(logits, targets), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(mask_dice(logits, targets), 0.5, rtol=1e-4)
    # What is right costs nothing, also of empty masks and of logits without measure.
    for truth in (targets, np.zeros_like(targets)):
        sure = np.where(truth > 0, 1e30, -1e30).astype(np.float32)
        assert np.abs(mask_bce(sure, truth)).max() == 0 and np.abs(mask_dice(sure, truth)).max() < 1e-6
        assert mask_dice(-sure, truth).min() > 0.999


def test_padding_of_masks_and_pixels_counts_for_nothing():
    logits, targets = batch(1)
    pixels = np.zeros(logits.shape, np.int32)
    pixels[..., :4, :3] = 1
    weights = np.array([[1, 0, 2], [0, 1, 1]], np.float32)
    bad = np.where(pixels > 0, logits, np.nan)
    bad[weights == 0] = np.nan
    bce, dice = reference(*(torch.tensor(x[..., :4, :3]) for x in (logits, targets)))
    bce, dice = (float((x.numpy() * weights).sum()) for x in (bce, dice))
    run = jax.jit(jax.value_and_grad(lambda x: mask_loss(x, targets, weights, pixels, 1.0, 3.0), has_aux=True))
    (total, aux), slope = run(bad)
    np.testing.assert_allclose(total, bce + 3 * dice, rtol=1e-5)
    assert aux["weight"] == weights.sum()
    assert np.all(np.asarray(slope)[pixels == 0] == 0)
    assert np.isfinite(np.asarray(slope)[weights > 0]).all()
    # An image of which nothing counts.
    assert mask_bce(logits, targets, np.zeros_like(pixels)).max() == 0


def test_any_split_gives_the_same_sum():
    logits, targets = batch(2)
    run = jax.jit(mask_loss)
    total, aux = run(logits, targets)
    parts = [run(x[None], y[None]) for x, y in zip(logits, targets, strict=True)]
    np.testing.assert_allclose(sum(part for part, _ in parts), total, rtol=1e-5)
    assert sum(more["weight"] for _, more in parts) == aux["weight"]
    with pytest.raises(ValueError, match=r"\(2, 3, 7, 5\), targets \(2, 7, 5\)"):
        mask_loss(logits, targets[:, 0])
