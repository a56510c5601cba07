"""Fits a `PatchAutoencoder` to images in closed form."""

import dataclasses

import numpy as np

from mmjax.generators.patch_autoencoder import PatchAutoencoderConfig, apart


def fit_patches(
    config: PatchAutoencoderConfig, images: np.ndarray
) -> tuple[PatchAutoencoderConfig, dict[str, np.ndarray]]:
    """The directions in which squares of images differ most, the first one first.

    Args:
        config: how large squares are, and how many directions are kept.
        images: float [n, H, W, channels] from -1 to 1.

    Returns:
        The config with the scale that gives these images' latents a variance of 1, over all their channels, and the
        parameters, float32.

    Raises:
        ValueError: images whose sides are no multiple of the patch's, or that have fewer squares than there are
            directions to be found.
    """
    squares = np.asarray(apart(np.asarray(images, np.float32), config.patch, config.image_channels))
    squares = squares.reshape(-1, squares.shape[-1])
    if len(squares) <= config.latent_channels:
        raise ValueError(f"{len(squares)} squares for {config.latent_channels} directions; there must be more")
    mean = squares.mean(0, dtype=np.float64)
    around = squares - mean.astype(np.float32)
    covariance = (around.T @ around).astype(np.float64) / len(squares)
    variances, directions = np.linalg.eigh(covariance)
    kept = slice(None, -config.latent_channels - 1, -1)
    variance = variances[kept].mean()
    if not variance > 0:
        raise ValueError("all squares of these images are the same")
    params = {"mean": mean.astype(np.float32), "basis": directions[:, kept].astype(np.float32)}
    return dataclasses.replace(config, scale=float(variance**-0.5)), params
