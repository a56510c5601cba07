"""Images and masks that a user gives, as arrays of one shape."""

from typing import Any

import numpy as np


def pixels(images: Any, rows: int, name: str = "image") -> np.ndarray:
    """Images as float32 [rows, H, W, 3] from 0 to 1.

    Args:
        images: one or several PIL images or arrays [H, W, 3] of one size, uint8 or float from 0 to 1; or [B, H, W, 3].
        rows: how many are wanted; a single one is taken for all.
        name: how it is called in errors.

    Raises:
        ValueError: no three channels, values outside 0 to 1, or another number of images.
    """
    found = np.asarray(images.convert("RGB") if hasattr(images, "convert") else _stacked(images, "RGB"))
    found = found[None] if found.ndim == 3 else found
    if found.ndim != 4 or found.shape[-1] != 3:
        raise ValueError(f"{name} is {found.shape}; wanted [B, H, W, 3]")
    return _rows(_unit(found, name), rows, name)


def masks(images: Any, rows: int, sides: tuple[int, int], name: str = "mask_image") -> np.ndarray:
    """Masks as float32 [rows, H, W, 1], 0 or 1: what is from a half up counts as 1.

    Args:
        images: one or several PIL images or arrays [H, W] of one size, uint8, bool or float from 0 to 1; or
            [B, H, W] or [B, H, W, 1].
        rows, name: as in `pixels`.
        sides: (H, W) that they must have.

    Raises:
        ValueError: another shape, values outside 0 to 1, or another number of masks.
    """
    found = np.asarray(images.convert("L") if hasattr(images, "convert") else _stacked(images, "L"))
    found = found[None] if found.ndim == 2 else found
    found = found[..., None] if found.ndim == 3 else found
    if found.ndim != 4 or found.shape[1:] != (*sides, 1):
        raise ValueError(f"{name} is {found.shape}; wanted [B, {sides[0]}, {sides[1]}, 1]")
    return _rows((_unit(found, name) >= 0.5).astype(np.float32), rows, name)


def pixels_or_latents(images: Any, rows: int, channels: int, name: str = "image") -> np.ndarray:
    """Images as float32 [rows, H, W, 3] from -1 to 1; arrays [B, h, w, `channels`] are latents and stay as they are."""
    if getattr(images, "ndim", 0) == 4 and images.shape[-1] == channels != 3:
        return _rows(np.asarray(images, np.float32), rows, name)
    return 2 * pixels(images, rows, name) - 1


def _stacked(images: Any, mode: str) -> Any:
    if isinstance(images, list | tuple):
        return np.stack([np.asarray(one.convert(mode) if hasattr(one, "convert") else one) for one in images])
    return images


def _unit(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    values = values.astype(np.float32)
    if not (values.min(initial=0) >= 0 and values.max(initial=1) <= 1):
        raise ValueError(f"{name} has values from {values.min():.3g} to {values.max():.3g}; wanted 0 to 1, or uint8")
    return values


def _rows(values: np.ndarray, rows: int, name: str) -> np.ndarray:
    if len(values) not in (1, rows):
        raise ValueError(f"{name}: {len(values)} for {rows} prompts")
    return np.broadcast_to(values, (rows, *values.shape[1:]))
