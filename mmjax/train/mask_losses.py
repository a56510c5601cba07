"""Losses of masks: cross-entropy of every pixel, and one minus the overlap of the whole.

Milletari et al., 2016, "V-Net" (DICE); weighted together as Lai et al., 2024, "LISA" does. As all losses here, each
is a sum with its weight, so that any split of a batch gives the same number.
"""

import jax
import jax.numpy as jnp

BCE_WEIGHT, DICE_WEIGHT = 2.0, 0.5
# As if so much of an overlap were there of 1000 pixels: an empty mask that is predicted empty costs nothing.
_DICE_EPS, _DICE_SCALE = 1e-6, 1000.0


def mask_bce(logits: jax.Array, targets: jax.Array, pixels: jax.Array | None = None) -> jax.Array:
    """The mean over pixels of -log p(target), of each mask.

    Args:
        logits: [..., h, w], above 0 inside.
        targets: [..., h, w], 1 inside and 0 outside, or between.
        pixels: [..., h, w], not 0 where a pixel counts; None: all do.

    Returns:
        float32 [...]; 0 where no pixel counts.
    """
    logits, targets, used = _floats(logits, targets, pixels)
    # max(x, 0) - x y + log(1 + exp(-|x|)), which nothing large can overflow.
    loss = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(loss * used, (-2, -1)) / jnp.maximum(jnp.sum(used, (-2, -1)), 1)


def mask_dice(logits: jax.Array, targets: jax.Array, pixels: jax.Array | None = None) -> jax.Array:
    """1 - 2 |p y| / (|p| + |y|) of each mask, with p = sigmoid(logits); arguments and result as `mask_bce`."""
    logits, targets, used = _floats(logits, targets, pixels)
    inside, targets = jax.nn.sigmoid(logits) * used / _DICE_SCALE, targets * used
    both = 2 * jnp.sum(inside * targets, (-2, -1))
    total = jnp.sum(inside, (-2, -1)) + jnp.sum(targets / _DICE_SCALE, (-2, -1))
    return 1 - (both + _DICE_EPS) / (total + _DICE_EPS)


def mask_loss(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    pixels: jax.Array | None = None,
    bce_weight: float = BCE_WEIGHT,
    dice_weight: float = DICE_WEIGHT,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Both losses of a batch of masks, LISA's unless told otherwise.

    Args:
        logits: [B, R, h, w].
        targets: [B, R, h, w].
        weights: [B, R], 0 for prompts that are padding; None: all count.
        pixels: [B, R, h, w], not 0 where a pixel counts (not the padding of an image); None: all do.
        bce_weight, dice_weight: of the two.

    Returns:
        The sum over masks (float32 scalar), and scalars "weight" (divide by it), "bce" and "dice" (their sums).

    Raises:
        ValueError: logits and targets of different shapes.
    """
    bce, dice = mask_bce(logits, targets, pixels), mask_dice(logits, targets, pixels)
    weights = jnp.ones(bce.shape) if weights is None else jnp.asarray(weights, jnp.float32)
    # The logits of padding may be anything; their loss must not reach the sum, not even times zero.
    bce, dice = (jnp.sum(jnp.where(weights != 0, loss * weights, 0.0)) for loss in (bce, dice))
    total = bce_weight * bce + dice_weight * dice
    return total, {"weight": jnp.sum(weights), "bce": bce, "dice": dice}


def _floats(logits: jax.Array, targets: jax.Array, pixels: jax.Array | None) -> tuple[jax.Array, ...]:
    """Logits, targets and which pixels count, all float32; logits of the others are 0."""
    if logits.shape != targets.shape:
        raise ValueError(f"logits of masks are {logits.shape}, targets {targets.shape}")
    used = jnp.ones(logits.shape) if pixels is None else (jnp.asarray(pixels) != 0).astype(jnp.float32)
    return jnp.where(used > 0, logits.astype(jnp.float32), 0.0), jnp.asarray(targets, jnp.float32), used
